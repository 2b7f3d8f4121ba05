//! The device.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::punch::punch;
use super::state::BalloonState;
use crate::cpr::format::{StateReader, StateWriter};
use crate::devices::DeviceError;
use crate::devices::virtio::{
    ActiveQueue, DeviceKind, Handler, Interrupt, RingError, Run, VirtioDevice, Worker, read_from,
};

/// virtio's id of balloons, and PCI's class of what has no other.
const KIND: DeviceKind = DeviceKind { id: 5, class: 0x00_ff00 };
/// VIRTIO_BALLOON_F_REPORTING.
const REPORTING: u64 = 1 << 5;
/// The queues: to inflate, to deflate, to report. Those between that are not offered take no number.
const INFLATE: u16 = 0;
const REPORT: u16 = 2;
const QUEUE_SIZES: [u16; 3] = [128; 3];
/// The balloon's unit.
const PAGE: u64 = 4096;
/// The most pages that one request is inflated with; the driver sends 256.
const MOST_PAGES: usize = 4096;
/// Chains that are served in one look at a queue.
const MOST: usize = 16;

/// The balloon.
pub struct Balloon {
    shared: Arc<Shared>,
    reporting: bool,
    worker: Worker,
}

struct Shared {
    /// Bytes of a page of the RAM's backing.
    page: AtomicU64,
    target: AtomicU32,
    actual: AtomicU32,
    held: AtomicBool,
    driver: Mutex<Option<Driver>>,
}

/// The ways to the driver and to the device's own queues, while it is started.
struct Driver {
    interrupt: Arc<Interrupt>,
    kicks: Vec<Arc<EventFd>>,
}

impl Balloon {
    /// A device after reset, in front of RAM whose backing has pages of 4 KiB.
    pub fn new(id: &str, reporting: bool) -> Result<Self, DeviceError> {
        let shared = Arc::new(Shared {
            page: AtomicU64::new(PAGE),
            target: AtomicU32::new(0),
            actual: AtomicU32::new(0),
            held: AtomicBool::new(false),
            driver: Mutex::default(),
        });
        let worker = Worker::spawn(id, Inflater(Arc::clone(&shared)))?;
        Ok(Self { shared, reporting, worker })
    }

    /// Says how large the pages of the RAM's backing are, in bytes: smaller pieces are not given back.
    pub fn set_page_size(&self, bytes: u64) {
        self.shared.page.store(bytes.max(PAGE), Ordering::SeqCst);
    }

    /// Asks the guest to make it this large, in bytes, rounded down to pages.
    pub fn set_target(&self, bytes: u64) {
        let pages = u32::try_from(bytes / PAGE).unwrap_or(u32::MAX);
        self.shared.target.store(pages, Ordering::SeqCst);
        if let Some(driver) = &*self.shared.driver() {
            driver.interrupt.config_changed();
        }
    }

    /// How large the driver says that it is, in bytes.
    pub fn actual(&self) -> u64 {
        u64::from(self.shared.actual.load(Ordering::SeqCst)) * PAGE
    }

    /// Changes no RAM any more. Requests wait until [`Self::release`]; one under way may still end.
    pub fn hold(&self) {
        self.shared.held.store(true, Ordering::SeqCst);
    }

    /// Goes on after [`Self::hold`].
    pub fn release(&self) {
        self.shared.held.store(false, Ordering::SeqCst);
        for kick in self.shared.driver().iter().flat_map(|driver| &driver.kicks) {
            // It can only fail when the counter is full, and then the thread is awake.
            let _ = kick.write(1);
        }
    }
}

impl Shared {
    fn driver(&self) -> MutexGuard<'_, Option<Driver>> {
        self.driver.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VirtioDevice for Balloon {
    fn id(&self) -> &str {
        self.worker.id()
    }

    fn kind(&self) -> DeviceKind {
        KIND
    }

    fn features(&self) -> u64 {
        if self.reporting { REPORTING } else { 0 }
    }

    fn queue_sizes(&self) -> &[u16] {
        if self.reporting { &QUEUE_SIZES } else { &QUEUE_SIZES[..2] }
    }

    /// `num_pages`, `actual`.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let words = [&self.shared.target, &self.shared.actual];
        let config = words.map(|word| word.load(Ordering::SeqCst).to_le_bytes()).concat();
        read_from(&config, offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        if let (4, Ok(actual)) = (offset, data.try_into()) {
            self.shared.actual.store(u32::from_le_bytes(actual), Ordering::SeqCst);
        }
    }

    fn start(&self, run: Run) -> Result<(), DeviceError> {
        let kicks = run.queues.iter().map(|queue| Arc::clone(&queue.kick)).collect();
        let interrupt = run.queues.first().map(|queue| Arc::clone(&queue.interrupt));
        *self.shared.driver() = interrupt.map(|interrupt| Driver { interrupt, kicks });
        self.worker.start(run);
        Ok(())
    }

    fn stop(&self, deadline: Instant) -> Result<Vec<ActiveQueue>, DeviceError> {
        self.worker.stop(deadline)
    }

    fn reset(&self) {
        *self.shared.driver() = None;
        self.shared.actual.store(0, Ordering::SeqCst);
    }

    fn save(&self, slot: u32, out: &mut StateWriter) -> Result<(), DeviceError> {
        let (target, actual) = (&self.shared.target, &self.shared.actual);
        Ok(out.put(
            slot,
            &BalloonState {
                target: target.load(Ordering::SeqCst),
                actual: actual.load(Ordering::SeqCst),
                reporting: self.reporting,
            },
        )?)
    }

    fn load(&self, slot: u32, state: &mut StateReader) -> Result<(), DeviceError> {
        let BalloonState { target, actual, reporting } = state.take(slot)?;
        if reporting != self.reporting {
            let said = |on| format!("free page reporting {}", if on { "on" } else { "off" });
            return Err(DeviceError::impossible(self.id())((said(reporting), said(self.reporting))));
        }
        self.shared.target.store(target, Ordering::SeqCst);
        self.shared.actual.store(actual, Ordering::SeqCst);
        Ok(())
    }
}

struct Inflater(Arc<Shared>);

impl Handler for Inflater {
    fn serve(&mut self, queue: &mut ActiveQueue, memory: &GuestMemoryMmap) -> Result<bool, RingError> {
        for _ in 0..MOST {
            // What is not taken now is looked at when it is released.
            if self.0.held.load(Ordering::SeqCst) {
                return Ok(false);
            }
            let Some(chain) = queue.pop(memory)? else { return Ok(false) };
            let head = chain.head_index();
            match queue.index {
                INFLATE => self.inflate(chain, memory).map_err(|why| queue.broken(why))?,
                REPORT => {
                    for free in chain.writable().take(QUEUE_SIZES[2].into()) {
                        let start = free.addr().0;
                        self.give_back(memory, start, start.saturating_add(free.len().into()));
                    }
                }
                _ => {}
            }
            queue.push(memory, head, 0)?;
        }
        Ok(true)
    }
}

impl Inflater {
    /// Gives back the pages whose numbers a chain has, runs of them at once.
    fn inflate(
        &self,
        chain: DescriptorChain<&GuestMemoryMmap>,
        memory: &GuestMemoryMmap,
    ) -> Result<(), String> {
        let mut pages = Vec::new();
        for buffer in chain.readable().take(QUEUE_SIZES[0].into()) {
            let count = (buffer.len() as usize / 4).min(MOST_PAGES - pages.len());
            let mut numbers = vec![0; 4 * count];
            memory.read_slice(&mut numbers, buffer.addr()).map_err(|error| error.to_string())?;
            let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
            pages.extend(numbers.chunks_exact(4).map(number));
        }
        pages.sort_unstable();
        pages.dedup();
        for run in pages.chunk_by(|page, next| page + 1 == *next) {
            self.give_back(memory, run[0] * PAGE, (run[0] + run.len() as u64) * PAGE);
        }
        Ok(())
    }

    /// A page that the host does not take back is the host's loss: the guest goes on.
    fn give_back(&self, memory: &GuestMemoryMmap, start: u64, end: u64) {
        if let Err(error) = punch(memory, self.0.page.load(Ordering::SeqCst), &(start..end)) {
            tracing::debug!("giving back RAM from {start:#x} to {end:#x}: {error}");
        }
    }
}
