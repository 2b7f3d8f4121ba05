//! A driver's side of a device's queues, for tests: rings and buffers in memory of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{ActiveQueue, Interrupt, Run, VirtioDevice};
use crate::devices::IrqLine;
use crate::devices::pci::fake::{Line, Vectors};
use crate::devices::pci::{Intx, IntxLine, Msix};

/// Descriptors of each queue.
const SIZE: u16 = 256;
/// Bytes of memory for each queue: its rings, then a buffer of [`ROOM`] bytes for each descriptor.
const STRIDE: u64 = 0x20_0000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const BUFFERS: u64 = 0x4000;
const ROOM: u64 = 0x1000;

/// A piece of a chain.
pub enum Piece<'a> {
    /// Bytes for the device.
    Out(&'a [u8]),
    /// Room for so many bytes from it.
    In(u32),
}

/// Interrupts of a device with so many queues, that nobody hears.
pub fn interrupt(queues: u16) -> Arc<Interrupt> {
    let lines = std::array::from_fn(|_| IntxLine::new(Arc::<Line>::default() as Arc<dyn IrqLine>));
    let msix = Arc::new(Msix::new(1, &Vectors::default()).unwrap());
    Interrupt::new(queues.into(), msix, Intx::new(&lines, 1))
}

/// A queue of this size whose descriptors, available ring and used ring are at these addresses below 4 GiB.
pub fn queue(index: u16, size: u16, at: [u64; 3], interrupt: &Arc<Interrupt>) -> ActiveQueue {
    let mut ring = Queue::new(size).unwrap();
    ring.set_desc_table_address(Some(at[0] as u32), None);
    ring.set_avail_ring_address(Some(at[1] as u32), None);
    ring.set_used_ring_address(Some(at[2] as u32), None);
    ring.set_ready(true);
    ActiveQueue::new(index, ring, Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()), Arc::clone(interrupt))
}

/// A driver of a device.
pub struct Driver {
    pub memory: Arc<GuestMemoryMmap>,
    pub queues: Vec<ActiveQueue>,
    /// For each queue: descriptors used, chains made available, chains seen used.
    counts: Vec<(u16, u16, u16)>,
}

impl Driver {
    /// One with so many queues, not given to a device yet.
    pub fn new(queues: u16) -> Self {
        let ranges = [(GuestAddress(0), usize::from(queues) * STRIDE as usize)];
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
        let interrupt = interrupt(queues);
        let queue = |index: u16| {
            let base = u64::from(index) * STRIDE;
            queue(index, SIZE, [base, base + AVAILABLE, base + USED], &interrupt)
        };
        let queues: Vec<_> = (0..queues).map(queue).collect();
        Self { memory, counts: vec![(0, 0, 0); queues.len()], queues }
    }

    /// Gives the device all queues that it does not have.
    pub fn start(&mut self, device: &dyn VirtioDevice, features: u64) {
        let (memory, queues) = (Arc::clone(&self.memory), std::mem::take(&mut self.queues));
        device.start(Run { memory, features, queues }).unwrap();
    }

    /// Takes them back.
    pub fn stop(&mut self, device: &dyn VirtioDevice) {
        self.queues = device.stop(Instant::now() + Duration::from_secs(20)).unwrap();
        self.queues.sort_by_key(|queue| queue.index);
    }

    /// Makes a chain available, without a notification.
    pub fn offer(&mut self, queue: u16, chain: &[Piece<'_>]) {
        let base = u64::from(queue) * STRIDE;
        let counts = &mut self.counts[usize::from(queue)];
        let head = counts.0 % SIZE;
        for (index, piece) in chain.iter().enumerate() {
            let at = counts.0 % SIZE;
            counts.0 = counts.0.wrapping_add(1);
            let (descriptor, buffer) = (base + 16 * u64::from(at), base + BUFFERS + ROOM * u64::from(at));
            let (length, mut flags) = match piece {
                Piece::Out(bytes) => {
                    self.memory.write_slice(bytes, GuestAddress(buffer)).unwrap();
                    (bytes.len() as u32, 0_u16)
                }
                Piece::In(room) => (*room, 2),
            };
            flags |= u16::from(index + 1 < chain.len());
            self.memory.write_obj(buffer, GuestAddress(descriptor)).unwrap();
            self.memory.write_obj(length, GuestAddress(descriptor + 8)).unwrap();
            self.memory.write_obj(flags, GuestAddress(descriptor + 12)).unwrap();
            self.memory.write_obj(counts.0 % SIZE, GuestAddress(descriptor + 14)).unwrap();
        }
        let slot = base + AVAILABLE + 4 + 2 * u64::from(counts.1 % SIZE);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        counts.1 = counts.1.wrapping_add(1);
        self.memory.write_obj(counts.1, GuestAddress(base + AVAILABLE + 2)).unwrap();
    }

    /// Waits for the next chain that was used: its head, and how much was written.
    pub fn used(&mut self, queue: u16) -> Option<(u16, u32)> {
        let base = u64::from(queue) * STRIDE;
        let seen = &mut self.counts[usize::from(queue)].2;
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.memory.read_obj::<u16>(GuestAddress(base + USED + 2)).unwrap() == *seen {
            if Instant::now() > deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let element = base + USED + 4 + 8 * u64::from(*seen % SIZE);
        *seen = seen.wrapping_add(1);
        let head: u32 = self.memory.read_obj(GuestAddress(element)).unwrap();
        Some((head as u16, self.memory.read_obj(GuestAddress(element + 4)).unwrap()))
    }

    /// What lies in the buffer of a descriptor.
    pub fn bytes(&self, queue: u16, descriptor: u16, length: u32) -> Vec<u8> {
        let buffer = u64::from(queue) * STRIDE + BUFFERS + ROOM * u64::from(descriptor);
        let mut bytes = vec![0; length as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(buffer)).unwrap();
        bytes
    }
}
