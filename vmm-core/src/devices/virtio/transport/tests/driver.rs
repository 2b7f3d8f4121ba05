//! A driver, and a device that echoes the lengths of what it is sent.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::devices::pci::fake::{Bells, Line, Vectors, windows};
use crate::devices::pci::*;
use crate::devices::virtio::*;
use crate::devices::{DeviceError, IrqLine};
use crate::x86::layout::PCI_ECAM_START;

pub(super) const SLOT: u8 = 5;
pub(super) const RAM: u64 = 1 << 20;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const BUFFERS: u64 = 0x1_0000;

/// A device with two queues of 16, that answers each chain, or holds what it has while it is stuck.
pub(super) struct Echo {
    worker: Worker,
    pub stuck: Arc<AtomicBool>,
    pub resets: Mutex<u32>,
}

struct Answer(Arc<AtomicBool>);

impl Handler for Answer {
    fn serve(&mut self, queue: &mut ActiveQueue, memory: &GuestMemoryMmap) -> Result<bool, RingError> {
        while let Some(chain) = queue.pop(memory)? {
            while self.0.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            let head = chain.head_index();
            let bytes: u32 = chain.map(|descriptor| descriptor.len()).sum();
            queue.push(memory, head, bytes)?;
        }
        Ok(false)
    }
}

impl VirtioDevice for Echo {
    fn id(&self) -> &'static str {
        "echo"
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind { id: 42, class: 0x00_ff00 }
    }

    fn features(&self) -> u64 {
        1
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16, 16]
    }

    fn start(&self, run: Run) -> Result<(), DeviceError> {
        self.worker.start(run);
        Ok(())
    }

    fn stop(&self, deadline: Instant) -> Result<Vec<ActiveQueue>, DeviceError> {
        self.worker.stop(deadline)
    }

    fn reset(&self) {
        *self.resets.lock().unwrap() += 1;
    }
}

pub(super) struct Rig {
    pub bus: PciBus,
    pub device: Arc<Echo>,
    pub memory: Arc<GuestMemoryMmap>,
    pub vectors: Arc<Vectors>,
    pub bells: Arc<Bells>,
    pub line: Arc<Line>,
}

impl Rig {
    pub fn new() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap();
        Self::on(Arc::new(memory))
    }

    /// A machine on memory that a guest has lived in.
    pub fn on(memory: Arc<GuestMemoryMmap>) -> Self {
        let stuck = Arc::new(AtomicBool::new(false));
        let worker = Worker::spawn("echo", Answer(Arc::clone(&stuck))).unwrap();
        let device = Arc::new(Echo { worker, stuck, resets: Mutex::default() });
        let (vectors, bells) = (Arc::<Vectors>::default(), Arc::<Bells>::default());
        let line = Arc::<Line>::default();
        let wires = Wires {
            memory: Arc::clone(&memory),
            msi: Arc::clone(&vectors) as _,
            doorbells: Arc::clone(&bells) as _,
            lines: std::array::from_fn(|_| IntxLine::new(Arc::clone(&line) as Arc<dyn IrqLine>)),
        };
        let function = VirtioPci::new(SLOT, Arc::clone(&device) as _, wires).unwrap();
        let mut bus = PciBus::new(windows());
        bus.add(SLOT, function).unwrap();
        Self { bus, device, memory, vectors, bells, line }
    }

    pub fn function(&self) -> &dyn PciFunction {
        &**self.bus.functions().next().unwrap()
    }

    pub fn config(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        assert!(self.bus.read_memory(PCI_ECAM_START + (u64::from(SLOT) << 15) + register, &mut data));
        u32::from_le_bytes(data)
    }

    pub fn set_config(&self, register: u64, data: &[u8]) {
        assert!(self.bus.write_memory(PCI_ECAM_START + (u64::from(SLOT) << 15) + register, data));
    }

    pub fn bar(&self) -> u64 {
        u64::from(self.config(0x10) & !0xf) | u64::from(self.config(0x14)) << 32
    }

    pub fn write(&self, offset: u64, data: &[u8]) {
        assert!(self.bus.write_memory(self.bar() + offset, data), "{offset:#x}");
    }

    pub fn read(&self, offset: u64, length: usize) -> u64 {
        let mut data = vec![0; length];
        assert!(self.bus.read_memory(self.bar() + offset, &mut data), "{offset:#x}");
        data.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    pub fn status(&self) -> u8 {
        self.read(20, 1) as u8
    }

    /// Switches memory and MSI-X on, with a vector for each queue and one for the configuration, none masked.
    pub fn enable_msix(&self) {
        self.set_config(4, &[6]);
        let capability = self.capability(0x11, None);
        self.set_config(capability + 2, &0x8000_u16.to_le_bytes());
        for vector in 0..3_u64 {
            self.write(0x4000 + vector * 16, &0xfee0_0000_u64.to_le_bytes());
            self.write(0x4008 + vector * 16, &(0x40 + vector as u32).to_le_bytes());
            self.write(0x400c + vector * 16, &0_u32.to_le_bytes());
        }
    }

    /// The offset of a capability, and of the one of a kind where it is virtio's.
    pub fn capability(&self, id: u8, kind: Option<u8>) -> u64 {
        let mut at = u64::from(self.config(0x34) & 0xff);
        while at != 0 {
            let [found, next, _, of] = self.config(at).to_le_bytes();
            if found == id && kind.is_none_or(|kind| kind == of) {
                return at;
            }
            at = next.into();
        }
        panic!("no capability {id:#x}");
    }

    /// Features up to `FEATURES_OK`.
    pub fn negotiate(&self, features: u64) -> u8 {
        self.write(20, &[1]);
        self.write(20, &[3]);
        for half in 0..2_u32 {
            self.write(8, &half.to_le_bytes());
            self.write(12, &((features >> (32 * half)) as u32).to_le_bytes());
        }
        self.write(20, &[11]);
        self.status()
    }

    /// Sets a queue up at its place and enables it, with its own vector.
    pub fn queue(&self, index: u16, size: u16) {
        let base = u64::from(index) * 0x4000;
        self.write(22, &index.to_le_bytes());
        self.write(24, &size.to_le_bytes());
        self.write(26, &index.to_le_bytes());
        for (register, address) in [(32, DESCRIPTORS), (40, AVAILABLE), (48, USED)] {
            self.write(register, &((base + address) as u32).to_le_bytes());
            self.write(register + 4, &0_u32.to_le_bytes());
        }
        self.write(28, &1_u16.to_le_bytes());
    }

    /// Up to `DRIVER_OK`, with queue 0 and the configuration's vector.
    pub fn start(&self) {
        self.enable_msix();
        assert_eq!(self.negotiate(1 << 32), 11);
        self.write(16, &2_u16.to_le_bytes());
        self.queue(0, 8);
        self.write(20, &[15]);
        assert_eq!(self.status(), 15);
    }

    pub fn put<T: vm_memory::ByteValued>(&self, address: u64, value: T) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    pub fn get(&self, address: u64) -> u16 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    /// Makes a buffer of `length` available in a queue of 8, as its `nth` request.
    pub fn offer(&self, queue: u16, nth: u16, length: u32) {
        let base = u64::from(queue) * 0x4000;
        let (slot, at) = (u64::from(nth % 8), base + DESCRIPTORS + u64::from(nth % 8) * 16);
        self.put(at, BUFFERS + slot * 0x100);
        self.put(at + 8, length);
        self.put(at + 12, 2_u32);
        self.put(base + AVAILABLE + 4 + slot * 2, nth % 8);
        self.put(base + AVAILABLE + 2, nth + 1);
    }

    pub fn notify(&self, queue: u16) {
        self.write(0x3000 + u64::from(queue) * 4, &queue.to_le_bytes());
    }

    /// Waits until the device has used so many buffers of a queue.
    pub fn wait_used(&self, queue: u16, count: u16) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.get(u64::from(queue) * 0x4000 + USED + 2) != count {
            assert!(Instant::now() < deadline, "{} used", self.get(USED + 2));
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until a vector has sent at least so many messages.
    pub fn wait_sent(&self, vector: usize, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.sent(vector) < count {
            assert!(Instant::now() < deadline, "vector {vector} sent {}", self.sent(vector));
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn sent(&self, vector: usize) -> usize {
        let vector = Arc::clone(&self.vectors.0.lock().unwrap()[vector]);
        vector.sent().len()
    }
}
