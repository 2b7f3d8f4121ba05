//! The PCI bus of a machine, with the devices that its configuration names.

use std::sync::Arc;

use kvm_ioctls::VmFd;

use super::irq::GsiLine;
use super::msi::{IoEvents, MsiRoutes, VectorSource};
use crate::config::{DeviceConfig, MachineConfig};
use crate::devices::DeviceError;
use crate::devices::pci::{HostBridge, IntxLine, PciBus, Windows};
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::{VirtioPci, Wires};
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

/// Makes the bus and everything on it. Ids and slots are settled.
pub(super) fn bus(
    vm: &Arc<VmFd>,
    config: &MachineConfig,
    ram: &GuestRam,
    msi: &Arc<MsiRoutes>,
) -> Result<PciBus, DeviceError> {
    let mut bus = PciBus::new(windows(config.memory.size.0));
    bus.add(0, Arc::new(HostBridge::new()))?;
    let wires = Wires {
        memory: Arc::new(ram.memory().clone()),
        msi: Arc::new(VectorSource(Arc::clone(msi))),
        doorbells: Arc::new(IoEvents(Arc::clone(vm))),
        lines: std::array::from_fn(|line| {
            IntxLine::new(GsiLine::line(vm, layout::PCI_INTX_GSI + line as u32))
        }),
    };
    for device in &config.devices {
        let (Some(id), Some(slot)) = (device.id(), device.addr()) else {
            let found = format!("a {} without id or slot", device.driver());
            return Err(DeviceError::impossible("pci")((
                found,
                "both in every guest that was booted".into(),
            )));
        };
        let device = match device {
            DeviceConfig::VirtioRng(_) => Arc::new(Rng::new(id)?),
        };
        bus.add(slot, VirtioPci::new(slot, device, wires.clone())?)?;
    }
    Ok(bus)
}
