//! The expansion ROMs of PCI devices, by the kernel's sysfs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use crate::status::Rom;

const DEVICES: &str = "/sys/bus/pci/devices";
/// How much of each is read. A guest reads a few bytes at a time from where they are.
const BEGINNING: u64 = 4096;

/// Those of all devices that have one.
pub fn all() -> Vec<Rom> {
    let devices = fs::read_dir(DEVICES).into_iter().flatten().flatten();
    devices.filter_map(|device| of(&device.path())).collect()
}

/// That of a device, by its directory.
pub fn of(device: &Path) -> Option<Rom> {
    let number = |file| Some(fs::read_to_string(device.join(file)).ok()?.trim().to_owned());
    let crc = crc32fast::hash(&beginning(&device.join("rom")).ok()?);
    Some(Rom { device: format!("{}:{}", number("vendor")?, number("device")?), crc })
}

fn beginning(path: &Path) -> io::Result<Vec<u8>> {
    let mut rom = OpenOptions::new().read(true).write(true).open(path)?;
    // It can be read between these two (Documentation/ABI/testing/sysfs-bus-pci).
    rom.write_all(b"1")?;
    let mut bytes = Vec::new();
    let read = File::open(path)?.take(BEGINNING).read_to_end(&mut bytes);
    rom.write_all(b"0")?;
    read.map(|_| bytes)
}
