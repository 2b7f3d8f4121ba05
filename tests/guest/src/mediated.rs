//! Load on a mediated serial card: a register of its that keeps what is written, checked all along. A device that was reset, or
//! is another one, has something else there.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use crate::memory::Checks;

const DEVICES: &str = "/sys/bus/pci/devices";
/// Its vendor, as sysfs has it.
const VENDOR: &str = "0x4348";
/// The scratch register of a 16550.
const SCRATCH: u64 = 7;
/// How long a value stays.
const STAYS: Duration = Duration::from_millis(20);

/// Puts load on the device without end.
pub fn run(checks: &Checks) {
    match open() {
        Ok(ports) => {
            for round in (1..=u8::MAX).cycle() {
                match one(&ports, round) {
                    Ok(()) => checks.pass(),
                    Err(error) => checks.error(|| format!("round {round}: {error}")),
                }
            }
        }
        Err(error) => checks.error(|| format!("the device cannot be driven: {error}")),
    }
}

/// Its first BAR, which is of ports.
fn open() -> io::Result<File> {
    let is_it =
        |path: &PathBuf| fs::read_to_string(path.join("vendor")).is_ok_and(|vendor| vendor.trim() == VENDOR);
    let mut all = fs::read_dir(DEVICES)?.flatten().map(|entry| entry.path());
    let device = all.find(is_it).ok_or_else(|| io::Error::other("no such device is there"))?;
    // A driver that has it has done so.
    if !device.join("driver").exists() {
        fs::write(device.join("enable"), "1")?;
    }
    OpenOptions::new().read(true).write(true).open(device.join("resource0"))
}

fn one(ports: &File, value: u8) -> io::Result<()> {
    ports.write_all_at(&[value], SCRATCH)?;
    thread::sleep(STAYS);
    let mut found = [0];
    ports.read_exact_at(&mut found, SCRATCH)?;
    if found == [value] {
        return Ok(());
    }
    Err(io::Error::other(format!("its scratch register has {:#x} and not {value:#x}", found[0])))
}
