//! The PCI bus of a machine, with the devices that its configuration names.

use std::sync::Arc;

use kvm_ioctls::VmFd;
use vm_memory::GuestMemoryMmap;

use super::backends::Backend;
use super::irq::GsiLine;
use super::msi::{IoEvents, MsiRoutes, VectorSource};
use super::vfio;
use crate::cpr::fds::FdTable;
use crate::devices::DeviceError;
use crate::devices::pci::{HostBridge, IntxLine, PciBus, PciFunction, Windows};
use crate::devices::vfio::{Tell, VfioPci};
use crate::devices::virtio::{VirtioPci, Wires};
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
    devices: Vec<(u8, Backend)>,
    ram: &Arc<GuestMemoryMmap>,
    msi: &Arc<MsiRoutes>,
    tell: Tell,
    mut kept: Option<&mut FdTable>,
) -> Result<PciBus, DeviceError> {
    let mut bus = PciBus::new(windows(ram_size));
    bus.add(0, Arc::new(HostBridge::new()))?;
    let wires = Wires {
        memory: Arc::clone(ram),
        msi: Arc::new(VectorSource(Arc::clone(msi))),
        doorbells: Arc::new(IoEvents(Arc::clone(vm))),
        lines: std::array::from_fn(|line| {
            IntxLine::new(GsiLine::line(vm, layout::PCI_INTX_GSI + line as u32))
        }),
    };
    let vfio = vfio::wires(vm, msi, tell);
    for (slot, device) in devices {
        let function: Arc<dyn PciFunction> = match device {
            Backend::Virtio(device) => VirtioPci::new(slot, device, wires.clone())?,
            Backend::Vfio(device) => Arc::new(VfioPci::new(slot, device, vfio.clone(), kept.as_deref_mut())?),
        };
        bus.add(slot, function)?;
    }
    Ok(bus)
}
