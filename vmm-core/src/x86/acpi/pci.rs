//! The PCI host bridge: its windows, where its configuration space is, and where INTx arrives.
//!
//! There is no `_OSC`: an operating system then leaves hot plug, error reporting and power management of PCI Express to
//! the platform, which has none of them, and uses MSI-X all the same.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Memory32Fixed, Name, Package, PackageBuilder,
    ResourceTemplate, ZERO,
};

use crate::devices::pci::{Intx, LINES, SLOTS};
use crate::x86::layout;

/// Ports of the address and data registers.
const CONFIG_PORTS: u8 = 8;

/// Adds the host bridge of a guest with `ram_size` bytes of RAM, and what reserves its configuration space.
pub(super) fn host_bridge(aml: &mut Vec<u8>, ram_size: u64) {
    let uncached = AddressSpaceCacheable::NotCacheable;
    let low_start = layout::PCI_MMIO32_START as u32;
    let low_end = low_start + (layout::PCI_MMIO32_SIZE - 1) as u32;
    let low = AddressSpace::new_memory(uncached, true, low_start, low_end, None);
    let high = layout::pci_mmio64(ram_size);
    let high =
        AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, high.start, high.end - 1, None);
    let ports = AddressSpace::new_io(layout::PCI_IO_START, u16::MAX, None);
    let buses = AddressSpace::new_bus_number(0_u16, 0);
    let config = IO::new(layout::PCI_ADDRESS_PORT, layout::PCI_ADDRESS_PORT, 1, CONFIG_PORTS);
    let resources = ResourceTemplate::new(vec![&buses, &config, &ports, &low, &high]);
    Device::new(
        "_SB_.PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_SEG".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            &Name::new("_CRS".into(), &resources),
            &Name::new("_PRT".into(), &interrupts()),
        ],
    )
    .to_aml_bytes(aml);

    let ecam = Memory32Fixed::new(false, layout::PCI_ECAM_START as u32, layout::PCI_ECAM_SIZE as u32);
    let ecam = ResourceTemplate::new(vec![&ecam]);
    Device::new(
        "_SB_.ECAM".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ecam),
        ],
    )
    .to_aml_bytes(aml);
}

/// Where each pin of each slot arrives: at an input of the I/O APIC, with no link device between.
fn interrupts() -> PackageBuilder {
    let mut table = PackageBuilder::new();
    for slot in 0..SLOTS {
        for pin in 0..LINES as u8 {
            let every_function = u32::from(slot) << 16 | 0xffff;
            let gsi = layout::PCI_INTX_GSI + Intx::line_of(slot, pin) as u32;
            table.add_element(&Package::new(vec![&every_function, &pin, &ZERO, &gsi]));
        }
    }
    table
}
