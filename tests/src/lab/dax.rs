//! Memory of the host's that is set aside for good, as DAX devices.
//!
//! `memmap=SIZE!START` on the host's command line makes a legacy persistent memory region of it (Documentation/admin-guide/
//! kernel-parameters.txt). A device-DAX device is made of each by what `ndctl create-namespace -m devdax` writes; from then on it is
//! there again under every kernel that sets the same memory aside, because what tells of it lies in the memory itself.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::commands::until;
use super::paths::GUESTS;
use super::scenario::Guest;

/// What a device is mapped in units of: a stamp takes one.
pub const UNIT_MIB: u64 = 2;
/// What a namespace has at its start, and the last unit: a guest's stamp, or who has what.
const BESIDES_MIB: u64 = 2 + UNIT_MIB;
/// Where the first begins.
const START_MIB: u64 = 1024;

/// The device that a guest has its RAM in.
pub fn device_of(name: &str, guest: &Guest) -> PathBuf {
    let own = GUESTS.iter().position(|guest| *guest == name).unwrap_or_default();
    device(if guest.dax_offset_mib.is_some() { 0 } else { own })
}

/// The device that so many others come before.
pub fn device(index: usize) -> PathBuf {
    format!("/dev/dax{index}.0").into()
}

/// The words on the host's command line that set so much memory aside for each of several devices.
pub fn cmdline(devices: &[u64]) -> String {
    let mut at = START_MIB;
    let words = devices.iter().map(|mib| {
        let size = mib + BESIDES_MIB;
        let word = format!("memmap={size}M!{at}M");
        at += size;
        word
    });
    words.collect::<Vec<_>>().join(" ")
}

/// The size of one of these devices, in bytes.
pub fn size(device: &Path) -> Result<u64> {
    let name = device.file_name().unwrap_or_default();
    let path = Path::new("/sys/bus/dax/devices").join(name).join("size");
    let size = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    size.trim().parse().with_context(|| format!("reading {}", path.display()))
}

/// Makes a device, unless it is there from the kernel before; says whether it was.
pub fn make(index: usize) -> Result<bool> {
    let device = device(index);
    let there = || device.exists().then_some(());
    if there().is_some() {
        return Ok(true);
    }
    let (namespace, dax) = (format!("namespace{index}.0"), format!("dax{index}.0"));
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    let write = |attribute: &str, value: &str| {
        let path = Path::new("/sys/bus/nd").join(attribute);
        fs::write(&path, value).with_context(|| format!("writing {value:?} to {}", path.display()))
    };
    write("drivers/nd_pmem/unbind", &namespace)?;
    for (attribute, value) in
        [("mode", "ram"), ("align", "2097152"), ("uuid", uuid.trim()), ("namespace", namespace.as_str())]
    {
        write(&format!("devices/{dax}/{attribute}"), value)?;
    }
    write("drivers/dax_pmem/bind", &dax)?;
    until("the DAX device", || Ok(there()))?;
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_has_memory_of_its_own() {
        assert_eq!(cmdline(&[1024, 512]), "memmap=1028M!1024M memmap=516M!2052M");
        assert_eq!(cmdline(&[]), "");
    }
}
