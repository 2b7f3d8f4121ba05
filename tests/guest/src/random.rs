//! The entropy device, read without end.

use std::fs::File;
use std::io::Read;
use std::time::Duration;

use crate::memory::Checks;

/// Bytes of a read: what comes twice is no accident.
const SIZE: usize = 64;

/// Reads the device, and checks that it never gives the same again.
pub fn run(checks: &Checks) {
    let mut last = [0; SIZE];
    let mut device = match File::open("/dev/hwrng") {
        Ok(device) => device,
        Err(error) => return checks.error(|| format!("opening /dev/hwrng: {error}")),
    };
    loop {
        let mut bytes = [0; SIZE];
        match device.read_exact(&mut bytes) {
            Ok(()) if bytes == last => checks.error(|| format!("/dev/hwrng gave twice {bytes:x?}")),
            Ok(()) => checks.pass(),
            Err(error) => {
                checks.error(|| format!("reading /dev/hwrng: {error}"));
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        last = bytes;
        std::thread::sleep(Duration::from_millis(1));
    }
}
