//! Memory of the host's that is set aside for good, as a DAX device.
//!
//! `memmap=SIZE!START` on the host's command line makes a legacy persistent memory region of it (Documentation/admin-guide/
//! kernel-parameters.txt). A device-DAX device is made of it by what `ndctl create-namespace -m devdax` writes; from then on it is
//! there again under every kernel that sets the same memory aside, because what tells of it lies in the memory itself.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::commands::until;

/// The device.
pub const DEVICE: &str = "/dev/dax0.0";
/// What a namespace has at its start, and what the guest's stamp takes at its end, by the device's alignment.
const BESIDES_MIB: u64 = 4;

/// The words on the host's command line that set so much memory aside.
pub fn cmdline(mib: u64) -> String {
    format!("memmap={}M!1G", mib + BESIDES_MIB)
}

/// Its size in bytes.
pub fn size() -> Result<u64> {
    let size = fs::read_to_string("/sys/bus/dax/devices/dax0.0/size").context("the DAX device's size")?;
    size.trim().parse().context("the DAX device's size")
}

/// Makes the device, unless it is there from the kernel before; says whether it was.
pub fn make() -> Result<bool> {
    let there = || Path::new(DEVICE).exists().then_some(());
    if there().is_some() {
        return Ok(true);
    }
    let nd = Path::new("/sys/bus/nd");
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    let write = |attribute: &str, value: &str| {
        let path = nd.join(attribute);
        fs::write(&path, value).with_context(|| format!("writing {value:?} to {}", path.display()))
    };
    write("drivers/nd_pmem/unbind", "namespace0.0")?;
    for (attribute, value) in
        [("mode", "ram"), ("align", "2097152"), ("uuid", uuid.trim()), ("namespace", "namespace0.0")]
    {
        write(&format!("devices/dax0.0/{attribute}"), value)?;
    }
    write("drivers/dax_pmem/bind", "dax0.0")?;
    until("the DAX device", || Ok(there()))?;
    Ok(false)
}
