//! The PCI bus of a machine, with the devices that its configuration names.

use std::sync::Arc;

use kvm_ioctls::VmFd;

use super::irq::GsiLine;
use super::msi::{IoEvents, MsiRoutes, VectorSource};
use crate::devices::DeviceError;
use crate::devices::pci::{HostBridge, IntxLine, PciBus, Windows};
use crate::devices::virtio::{VirtioDevice, VirtioPci, Wires};
use crate::memory::GuestRam;
use crate::x86::layout;

/// The windows of a guest with `ram_size` bytes of RAM.
fn windows(ram_size: u64) -> Windows {
    Windows {
        low: layout::PCI_MMIO32_START..layout::PCI_MMIO32_START + layout::PCI_MMIO32_SIZE,
        high: layout::pci_mmio64(ram_size),
        io: layout::PCI_IO_START.into()..0x1_0000,
    }
}

/// Makes the bus and everything on it.
pub(super) fn bus(
    vm: &Arc<VmFd>,
    ram_size: u64,
    devices: Vec<(u8, Arc<dyn VirtioDevice>)>,
    ram: &GuestRam,
    msi: &Arc<MsiRoutes>,
) -> Result<PciBus, DeviceError> {
    let mut bus = PciBus::new(windows(ram_size));
    bus.add(0, Arc::new(HostBridge::new()))?;
    let wires = Wires {
        memory: Arc::new(ram.memory().clone()),
        msi: Arc::new(VectorSource(Arc::clone(msi))),
        doorbells: Arc::new(IoEvents(Arc::clone(vm))),
        lines: std::array::from_fn(|line| {
            IntxLine::new(GsiLine::line(vm, layout::PCI_INTX_GSI + line as u32))
        }),
    };
    for (slot, device) in devices {
        bus.add(slot, VirtioPci::new(slot, device, wires.clone())?)?;
    }
    Ok(bus)
}
