//! The function as a device of the machine: stopped, saved, loaded.

use std::time::Instant;

use super::function::{VirtioPci, lock};
use super::registers::DRIVER_OK;
use super::state::VirtioState;
use crate::cpr::Mode;
use crate::cpr::blockers::Blocker;
use crate::cpr::fds::FdTable;
use crate::cpr::format::{StateReader, StateWriter};
use crate::devices::pci::PciConfigState;
use crate::devices::virtio::interrupt::NO_VECTOR;
use crate::devices::{Device, DeviceError, Subscriber};

impl Device for VirtioPci {
    fn id(&self) -> &str {
        self.device.id()
    }

    fn quiesce(&self, deadline: Instant) -> Result<(), DeviceError> {
        let mut inner = lock(&self.inner);
        self.stop(&mut inner, deadline)?;
        self.device.quiesce();
        inner.quiesced = true;
        Ok(())
    }

    fn resume(&self) {
        let mut inner = lock(&self.inner);
        inner.quiesced = false;
        self.device.resume();
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

    fn hand_over(&self) {
        self.device.hand_over();
    }

    fn subscriber(&self) -> Option<Subscriber> {
        self.device.subscriber()
    }
}
