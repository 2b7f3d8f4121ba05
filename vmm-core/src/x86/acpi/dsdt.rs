//! The devices that cannot be found by looking, which of them can wake the guest, and what to write for S3 and S5.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Method, Name, Notify, ONE, Package, Path, ResourceTemplate, ZERO,
};
use acpi_tables::sdt::Sdt;

use super::{HEADER_SIZE, OEM_ID, OEM_REVISION, OEM_TABLE_ID, SLEEP_TYPE_S3, SLEEP_TYPE_S5, pci};
use crate::x86::layout;

/// From revision 2 on, integers have 64 bits.
const REVISION: u8 = 2;

/// The serial port.
const COM1: &str = "_SB_.COM1";
/// What a device is notified with that is to wake the guest (ACPI 6.5, 5.6.6).
const DEVICE_WAKE: u8 = 2;

/// The DSDT.
pub(super) fn table(ram_size: u64) -> Sdt {
    let mut table = Sdt::new(*b"DSDT", HEADER_SIZE, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let mut aml = Vec::new();
    sleep_state(&mut aml, "_S3_", SLEEP_TYPE_S3);
    sleep_state(&mut aml, "_S5_", SLEEP_TYPE_S5);
    let wake = Package::new(vec![&layout::COM1_GPE, &SLEEP_TYPE_S3]);
    let wake = Name::new("_PRW".into(), &wake);
    let (ports, interrupt) = (io(layout::COM1_PORT, layout::COM1_PORTS), isa_interrupt(layout::COM1_GSI));
    isa_device(&mut aml, COM1, "PNP0501", vec![&ports, &interrupt], Some(&wake));
    let (ports, interrupt) = (io(layout::RTC_PORT, layout::RTC_PORTS), isa_interrupt(layout::RTC_GSI));
    isa_device(&mut aml, "_SB_.RTC_", "PNP0B00", vec![&ports, &interrupt], None);
    // The port's event: an edge, by which the device that it is of has woken the guest, or would have.
    let (com1, name) = (Path::new(COM1), format!("_GPE._E{:02X}", layout::COM1_GPE));
    Method::new(name.as_str().into(), 0, false, vec![&Notify::new(&com1, &DEVICE_WAKE)])
        .to_aml_bytes(&mut aml);
    pci::host_bridge(&mut aml, ram_size);
    table.append_slice(&aml);
    table
}

fn sleep_state(aml: &mut Vec<u8>, name: &str, sleep_type: u8) {
    let values = Package::new(vec![&sleep_type, &ZERO, &ZERO, &ZERO]);
    Name::new(name.into(), &values).to_aml_bytes(aml);
}

fn isa_device(aml: &mut Vec<u8>, path: &str, hid: &str, resources: Vec<&dyn Aml>, more: Option<&dyn Aml>) {
    let resources = ResourceTemplate::new(resources);
    let hid = Name::new("_HID".into(), &EISAName::new(hid));
    let uid = Name::new("_UID".into(), &ONE);
    let crs = Name::new("_CRS".into(), &resources);
    let children = [&hid as &dyn Aml, &uid, &crs].into_iter().chain(more).collect();
    Device::new(path.into(), children).to_aml_bytes(aml);
}

fn isa_interrupt(gsi: u32) -> Interrupt {
    let (consumer, edge, active_low, shared) = (true, true, false, false);
    Interrupt::new(consumer, edge, active_low, shared, gsi)
}

fn io(port: u16, ports: u16) -> IO {
    IO::new(port, port, 1, ports as u8)
}
