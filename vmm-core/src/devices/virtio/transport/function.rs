//! The PCI function of a virtio device.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::layout::{self, BAR, PENDING, Register, TABLE};
use super::registers::{DRIVER_OK, EVENT_IDX, QueueRegisters, Registers, Request};
use super::state::VirtioState;
use crate::cpr::Mode;
use crate::cpr::blockers::Blocker;
use crate::cpr::fds::FdTable;
use crate::cpr::format::{StateReader, StateWriter};
use crate::devices::pci::msi::{Doorbells, MsiVectors};
use crate::devices::pci::{Bar, ConfigSpace, Intx, IntxLine, LINES, Msix, PciConfigState, PciFunction};
use crate::devices::virtio::interrupt::NO_VECTOR;
use crate::devices::virtio::{ActiveQueue, Interrupt, Run, VirtioDevice};
use crate::devices::{Device, DeviceError};
use crate::x86::layout::PCI_INTX_GSI;

/// How long a vCPU that resets the device waits for it. The driver asks again.
const RESET: Duration = Duration::from_millis(20);

/// What the machine gives to a virtio function.
#[derive(Clone)]
pub struct Wires {
    /// The guest's memory.
    pub memory: Arc<GuestMemoryMmap>,
    /// Where its MSI-X vectors come from.
    pub msi: Arc<dyn MsiVectors>,
    /// Where notifications are heard of without an exit.
    pub doorbells: Arc<dyn Doorbells>,
    /// The lines of INTx.
    pub lines: [Arc<IntxLine>; LINES],
}

/// A virtio device in a slot of the PCI bus.
pub struct VirtioPci {
    slot: u8,
    device: Arc<dyn VirtioDevice>,
    memory: Arc<GuestMemoryMmap>,
    doorbells: Arc<dyn Doorbells>,
    msix: Arc<Msix>,
    interrupt: Arc<Interrupt>,
    kicks: Vec<Arc<EventFd>>,
    config: Mutex<Config>,
    inner: Mutex<Inner>,
}

struct Config {
    space: ConfigSpace,
    msix: usize,
    access: usize,
    /// Where the BAR decodes.
    at: Option<u64>,
}

struct Inner {
    registers: Registers,
    /// The device has the queues.
    running: bool,
    /// A reset waits for the device to finish.
    resetting: bool,
    /// Stopped from outside: no start before the resume.
    quiesced: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VirtioPci {
    /// A function for `device`, after reset.
    pub fn new(slot: u8, device: Arc<dyn VirtioDevice>, wires: Wires) -> Result<Arc<Self>, DeviceError> {
        let sizes = device.queue_sizes();
        let eventfd = |_| {
            let made = EventFd::new(EFD_NONBLOCK).map_err(DeviceError::io(device.id(), "making an eventfd"));
            made.map(Arc::new)
        };
        let kicks = sizes.iter().map(eventfd).collect::<Result<Vec<_>, _>>()?;
        // One for each queue, and one for the configuration.
        let msix = Arc::new(Msix::new(sizes.len() as u16 + 1, &*wires.msi)?);
        let (mut space, access) = layout::config_space(device.kind());
        let capability = msix.add_capability(&mut space, BAR.index as u32, TABLE as u32, PENDING as u32);
        space.set_interrupt_line((PCI_INTX_GSI + Intx::line_of(slot, 0) as u32) as u8);
        let intx = Intx::new(&wires.lines, slot);
        let registers = Registers::new(device.features(), sizes);
        Ok(Arc::new(Self {
            slot,
            interrupt: Interrupt::new(kicks.len(), Arc::clone(&msix), intx),
            device,
            memory: wires.memory,
            doorbells: wires.doorbells,
            msix,
            kicks,
            config: Mutex::new(Config { space, msix: capability, access, at: None }),
            inner: Mutex::new(Inner { registers, running: false, resetting: false, quiesced: false }),
        }))
    }

    /// Gives the device its queues.
    fn start(&self, inner: &mut Inner) {
        let wanted = inner.registers.status & DRIVER_OK != 0;
        if inner.running || inner.quiesced || !wanted || self.interrupt.is_reset_needed() {
            return;
        }
        let run = self.active_queues(&inner.registers).and_then(|queues| {
            let (memory, features) = (Arc::clone(&self.memory), inner.registers.features);
            self.device.start(Run { memory, features, queues }).map_err(|error| error.to_string())
        });
        match run {
            Ok(()) => inner.running = true,
            Err(error) => {
                tracing::warn!("{}: {error}; its driver must reset it", self.device.id());
                self.interrupt.needs_reset();
            }
        }
    }

    fn active_queues(&self, registers: &Registers) -> Result<Vec<ActiveQueue>, String> {
        let enabled = registers.queues.iter().zip(0..).filter(|(queue, _)| queue.enabled);
        let queue = |(queue, index): (&QueueRegisters, u16)| {
            let ring = ring(queue, registers.features & EVENT_IDX != 0, &self.memory)
                .map_err(|error| format!("queue {index}: {error}"))?;
            let kick = Arc::clone(&self.kicks[usize::from(index)]);
            Ok(ActiveQueue::new(index, ring, kick, Arc::clone(&self.interrupt)))
        };
        enabled.map(queue).collect()
    }

    /// Takes the queues back.
    fn stop(&self, inner: &mut Inner, deadline: Instant) -> Result<(), DeviceError> {
        if inner.running {
            for queue in self.device.stop(deadline)? {
                if let Some(registers) = inner.registers.queues.get_mut(usize::from(queue.index)) {
                    registers.next_available = queue.ring.next_avail();
                    registers.next_used = queue.ring.next_used();
                }
            }
            inner.running = false;
        }
        if inner.resetting {
            inner.resetting = false;
            self.reset(inner);
        }
        Ok(())
    }

    /// Puts the device back to its beginning. It is stopped.
    fn reset(&self, inner: &mut Inner) {
        inner.registers.reset();
        self.interrupt.reset();
        self.device.reset();
        for kick in &self.kicks {
            // Nothing to read is what is wanted.
            let _ = kick.read();
        }
    }

    /// Does something with a queue while the device does not have it.
    fn with_queue(&self, inner: &mut Inner, index: u16, change: impl FnOnce(&mut QueueRegisters)) {
        if let Err(error) = self.stop(inner, Instant::now() + RESET) {
            tracing::warn!("{error}: queue {index} is left as it is");
            return;
        }
        if let Some(queue) = inner.registers.queues.get_mut(usize::from(index)) {
            change(queue);
        }
        self.start(inner);
    }

    fn write_common(&self, offset: u64, data: &[u8]) {
        let mut inner = lock(&self.inner);
        if inner.resetting {
            return;
        }
        match inner.registers.write(offset, data) {
            Some(Request::Status(0)) => {
                inner.resetting = true;
                if let Err(error) = self.stop(&mut inner, Instant::now() + RESET) {
                    tracing::debug!("{error}: its reset goes on");
                }
            }
            Some(Request::Status(status)) if inner.registers.set_status(status) => self.start(&mut inner),
            Some(Request::Vector(queue, vector)) => self.interrupt.set_vector(queue, vector),
            Some(Request::Enable(index)) => self.with_queue(&mut inner, index, |queue| queue.enabled = true),
            Some(Request::ResetQueue(index)) => self.with_queue(&mut inner, index, QueueRegisters::reset),
            Some(Request::Status(_)) | None => {}
        }
    }

    fn read_common(&self, offset: u64, data: &mut [u8]) {
        let mut inner = lock(&self.inner);
        if inner.resetting {
            // Whoever waits for the end of a reset looks at the status until it is 0.
            let _ = self.stop(&mut inner, Instant::now() + RESET);
        }
        let vector = |queue| self.interrupt.vector(queue);
        inner.registers.read(offset, data, vector, self.interrupt.is_reset_needed());
    }

    fn kick(&self, queue: u16) {
        if let Some(kick) = self.kicks.get(usize::from(queue)) {
            // It can only fail when the counter is full, and then whoever listens is awake.
            let _ = kick.write(1);
        }
    }
}

/// Where in the BAR the configuration access capability points, for accesses of up to `most` bytes.
fn access(config: &Config, most: usize) -> Option<(u64, usize)> {
    let word = |offset| {
        let mut word = [0; 4];
        config.space.read(config.access + offset, &mut word);
        u32::from_le_bytes(word)
    };
    let (bar, offset, length) = ((word(4) & 0xff) as usize, u64::from(word(8)), word(12));
    let fits = matches!(length, 1 | 2 | 4)
        && length as usize <= most
        && offset.is_multiple_of(length.into())
        && offset + u64::from(length) <= BAR.size;
    (bar == BAR.index && fits).then_some((offset, length as usize))
}

/// The ring that a queue's registers describe, if all of it is in memory.
fn ring(queue: &QueueRegisters, event_idx: bool, memory: &GuestMemoryMmap) -> Result<Queue, String> {
    let ring = Queue::try_from(QueueState {
        max_size: queue.max_size,
        next_avail: queue.next_available,
        next_used: queue.next_used,
        event_idx_enabled: event_idx,
        size: queue.size,
        ready: true,
        desc_table: queue.descriptors,
        avail_ring: queue.available,
        used_ring: queue.used,
    })
    .map_err(|error| error.to_string())?;
    if ring.is_valid(memory) {
        return Ok(ring);
    }
    let QueueRegisters { descriptors, available, used, .. } = queue;
    Err(format!("its rings at {descriptors:#x}, {available:#x} and {used:#x} are not all in RAM"))
}

impl PciFunction for VirtioPci {
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let mut config = lock(&self.config);
        let window = config.access + 16;
        if offset == window
            && let Some((at, length)) = access(&config, data.len())
        {
            drop(config);
            self.read_bar(BAR.index, at, &mut data[..length]);
            return;
        }
        config.space.set_interrupt_status(self.interrupt.isr() != 0);
        config.space.read(offset, data);
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        let mut config = lock(&self.config);
        config.space.write(offset, data);
        if offset == config.access + 16
            && let Some((at, length)) = access(&config, data.len())
        {
            drop(config);
            self.write_bar(BAR.index, at, &data[..length]);
            return;
        }
        self.msix.follow(&config.space, config.msix);
        self.interrupt.follow(config.space.intx_disabled());
    }

    fn bars(&self) -> Vec<Bar> {
        lock(&self.config).space.bars()
    }

    fn place_bar(&self, _bar: usize, at: Option<u64>) {
        let mut config = lock(&self.config);
        for (kick, queue) in self.kicks.iter().zip(0..) {
            let offset = layout::notify_offset(queue);
            let gone = config.at.map_or(Ok(()), |old| self.doorbells.deassign(old + offset, kick));
            let there = at.map_or(Ok(()), |new| self.doorbells.assign(new + offset, kick));
            if let Err(error) = gone.and(there) {
                // Its notifications then come by way of the vCPU's exits.
                tracing::warn!("{}: moving the doorbell of queue {queue}: {error}", self.device.id());
            }
        }
        config.at = at;
    }

    fn read_bar(&self, _bar: usize, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match layout::register(offset) {
            Some(Register::Common(at)) => self.read_common(at, data),
            Some(Register::Isr) => {
                if let Some(byte) = data.first_mut() {
                    *byte = self.interrupt.take_isr();
                }
            }
            Some(Register::Device(at)) => self.device.read_config(at, data),
            Some(Register::Table(at)) => self.msix.read_table(at, data),
            Some(Register::Pending(at)) => self.msix.read_pending(at, data),
            Some(Register::Notify(_)) | None => {}
        }
    }

    fn write_bar(&self, _bar: usize, offset: u64, data: &[u8]) {
        match layout::register(offset) {
            Some(Register::Common(at)) => self.write_common(at, data),
            Some(Register::Device(at)) => self.device.write_config(at, data),
            Some(Register::Notify(queue)) => self.kick(queue),
            Some(Register::Table(at)) => self.msix.write_table(at, data),
            Some(Register::Isr | Register::Pending(_)) | None => {}
        }
    }
}

impl Device for VirtioPci {
    fn id(&self) -> &str {
        self.device.id()
    }

    fn quiesce(&self, deadline: Instant) -> Result<(), DeviceError> {
        let mut inner = lock(&self.inner);
        self.stop(&mut inner, deadline)?;
        inner.quiesced = true;
        Ok(())
    }

    fn resume(&self) {
        let mut inner = lock(&self.inner);
        inner.quiesced = false;
        if inner.running || inner.registers.status & DRIVER_OK == 0 {
            return;
        }
        self.start(&mut inner);
        // What was signalled just before the stop may not have reached the guest.
        for (_, index) in inner.registers.queues.iter().zip(0..).filter(|(queue, _)| queue.enabled) {
            self.interrupt.queue(index);
        }
        self.interrupt.config_changed();
    }

    fn save(&self, out: &mut StateWriter) -> Result<(), DeviceError> {
        let slot = self.slot.into();
        out.put(slot, &lock(&self.config).space.state())?;
        out.put(slot, &self.msix.state())?;
        let mut state = lock(&self.inner).registers.state();
        state.needs_reset = self.interrupt.is_reset_needed();
        state.isr = self.interrupt.isr();
        state.config_vector = self.interrupt.vector(None);
        for (queue, index) in state.queues.iter_mut().zip(0..) {
            queue.vector = self.interrupt.vector(Some(index));
        }
        out.put(slot, &state)?;
        self.device.save(slot, out)
    }

    fn load(&self, state: &mut StateReader) -> Result<(), DeviceError> {
        let slot = self.slot.into();
        let impossible = DeviceError::impossible(self.device.id());
        let space: PciConfigState = state.take(slot)?;
        let virtio: VirtioState = state.take(slot)?;
        let vectors = virtio.queues.iter().map(|queue| queue.vector).chain([virtio.config_vector]);
        if let Some(vector) = vectors.clone().find(|v| *v != NO_VECTOR && *v >= self.msix.count()) {
            return Err(impossible((
                format!("MSI-X vector {vector}"),
                format!("one below {}, or {NO_VECTOR:#x}", self.msix.count()),
            )));
        }
        self.msix.load(state.take(slot)?).map_err(&impossible)?;
        let mut inner = lock(&self.inner);
        inner.registers.load(&virtio).map_err(&impossible)?;
        if virtio.status & DRIVER_OK != 0 && !virtio.needs_reset {
            let why = |why| impossible((why, "rings in RAM".into()));
            self.active_queues(&inner.registers).map_err(why)?;
        }
        inner.quiesced = true;
        for (vector, queue) in vectors.zip((0..self.kicks.len() as u16).map(Some).chain([None])) {
            self.interrupt.set_vector(queue, vector);
        }
        self.device.load(slot, state)?;
        let mut config = lock(&self.config);
        config.space.load(&space).map_err(&impossible)?;
        self.msix.follow(&config.space, config.msix);
        self.interrupt.load(virtio.isr, virtio.needs_reset);
        self.interrupt.follow(config.space.intx_disabled());
        Ok(())
    }

    fn descriptors(&self, mode: Mode, fds: &mut FdTable) -> Result<(), DeviceError> {
        self.device.descriptors(mode, fds)
    }

    fn blockers(&self, mode: Mode) -> Vec<Blocker> {
        self.device.blockers(mode)
    }
}
