//! What the guest does to the outside, brought to the devices.

use std::sync::Arc;

use vm_device::bus::PioAddress;
use vm_device::device_manager::{IoManager, PioManager};

use super::events::{EventSink, MachineEvent};
use crate::devices::pci::PciBus;
use crate::vcpu::thread::ExitHandler;

/// Serves the exits of every vCPU: from a table of the devices whose ports are fixed, and from the PCI bus.
pub(super) struct Exits {
    io: IoManager,
    pci: Arc<PciBus>,
    events: EventSink,
}

impl Exits {
    pub(super) fn new(io: IoManager, pci: Arc<PciBus>, events: EventSink) -> Arc<Self> {
        Arc::new(Self { io, pci, events })
    }
}

impl ExitHandler for Exits {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        // Nothing there: the bus floats high.
        data.fill(0xff);
        if self.io.pio_read(PioAddress(port), data).is_err() && !self.pci.read_ports(port, data) {
            tracing::trace!("read of port {port:#x}, where no device is");
        }
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        if self.io.pio_write(PioAddress(port), data).is_err() && !self.pci.write_ports(port, data) {
            tracing::trace!("write of port {port:#x}, where no device is");
        }
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if !self.pci.read_memory(address, data) {
            tracing::trace!("read of {address:#x}, where no device is");
        }
    }

    fn mmio_write(&self, address: u64, data: &[u8]) {
        if !self.pci.write_memory(address, data) {
            tracing::trace!("write of {address:#x}, where no device is");
        }
    }

    fn shutdown(&self, vcpu: usize) {
        tracing::warn!("vCPU {vcpu}: triple fault");
        (self.events)(MachineEvent::Reset);
    }

    fn failed(&self, vcpu: usize, why: String) {
        (self.events)(MachineEvent::Failed { vcpu, why });
    }
}
