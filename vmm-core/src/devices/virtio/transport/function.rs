//! The PCI function of a virtio device.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::layout::{self, BAR, PENDING, Register, TABLE};
use super::registers::{QueueRegisters, Registers, Request};
use super::run::RESET;
use crate::devices::pci::msi::{Doorbells, MsiVectors};
use crate::devices::pci::{Bar, ConfigSpace, Intx, IntxLine, LINES, Msix, PciFunction};
use crate::devices::virtio::{Interrupt, VirtioDevice};
use crate::devices::{DeviceError, eventfd};
use crate::x86::layout::PCI_INTX_GSI;

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
    pub(super) slot: u8,
    pub(super) device: Arc<dyn VirtioDevice>,
    pub(super) memory: Arc<GuestMemoryMmap>,
    doorbells: Arc<dyn Doorbells>,
    pub(super) msix: Arc<Msix>,
    pub(super) interrupt: Arc<Interrupt>,
    pub(super) kicks: Vec<Arc<EventFd>>,
    pub(super) config: Mutex<Config>,
    pub(super) inner: Mutex<Inner>,
}

pub(super) struct Config {
    pub(super) space: ConfigSpace,
    pub(super) msix: usize,
    access: usize,
    /// Where the BAR decodes.
    at: Option<u64>,
}

pub(super) struct Inner {
    pub(super) registers: Registers,
    /// The device has the queues.
    pub(super) running: bool,
    /// A reset waits for the device to finish.
    pub(super) resetting: bool,
    /// Stopped from outside: no start before the resume.
    pub(super) quiesced: bool,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VirtioPci {
    /// A function for `device`, after reset.
    pub fn new(slot: u8, device: Arc<dyn VirtioDevice>, wires: Wires) -> Result<Arc<Self>, DeviceError> {
        let sizes = device.queue_sizes();
        let kick = |_| eventfd::make(device.id()).map(Arc::new);
        let kicks = sizes.iter().map(kick).collect::<Result<Vec<_>, _>>()?;
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

impl PciFunction for VirtioPci {
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let mut config = lock(&self.config);
        config.space.set_interrupt_status(self.interrupt.isr() != 0);
        config.space.read(offset, data);
        if offset == config.access + 16
            && let Some((at, length)) = access(&config, data.len())
        {
            drop(config);
            self.read_bar(BAR.index, at, &mut data[..length]);
        }
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        let mut config = lock(&self.config);
        config.space.write(offset, data);
        self.msix.follow(&config.space, config.msix);
        self.interrupt.follow(config.space.intx_disabled());
        if offset == config.access + 16
            && let Some((at, length)) = access(&config, data.len())
        {
            drop(config);
            self.write_bar(BAR.index, at, &data[..length]);
        }
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
