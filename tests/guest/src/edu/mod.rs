//! Load on QEMU's educational device (its docs/specs/edu.rst): each interrupt is counted, each block that it copies checked.
//!
//! 1. The device is driven by this program, through VFIO without an IOMMU ([`device`]): its DMA goes to guest addresses.
//! 2. In each round one interrupt is raised by hand, and two by copies, into the device and back, which take it a tenth of a
//!    second each: many of them are under way when the guest stops, and end while nobody runs it.
//! 3. An interrupt that does not come within [`WITHIN`] is lost; one more than was raised is an error, too.

mod buffer;
mod device;

use std::thread;
use std::time::Duration;

use buffer::Buffer;
use device::Edu;

use crate::memory::Checks;
use crate::options::Edu as Wires;

/// How long an interrupt may take. A guest that is handed over, and a machine that is busy, take some of it.
const WITHIN: Duration = Duration::from_secs(20);
/// Where the device's own memory is for its DMA, and how much of it there is.
const INSIDE: u64 = 0x40000;
const SIZE: usize = 4096;
/// The interrupt status of a copy that is done.
const COPIED: u32 = 0x100;

/// Puts load on the device without end.
pub fn run(checks: &Checks, wires: Wires) {
    match Edu::open(wires).and_then(|edu| Ok((edu, Buffer::new(SIZE)?, Buffer::new(SIZE)?))) {
        Ok((edu, from, to)) => {
            for round in 1_u32.. {
                match one(&edu, &from, &to, round) {
                    Ok(()) => checks.pass(),
                    Err(what) => {
                        checks.error(|| format!("round {round}: {what}"));
                        thread::sleep(Duration::from_secs(1));
                    }
                }
            }
        }
        Err(error) => checks.error(|| format!("the device cannot be driven: {error}")),
    }
}

fn one(edu: &Edu, from: &Buffer, to: &Buffer, round: u32) -> Result<(), String> {
    // Any bits but that of a copy.
    let raised = round & 0xff | 0x200;
    edu.raise(raised);
    expect(edu, raised, "raised by hand")?;
    let pattern = |at: usize| (round as usize).wrapping_mul(31).wrapping_add(at * 7) as u8;
    from.fill(pattern);
    to.fill(|at| !pattern(at));
    edu.copy(from.address()?, INSIDE, SIZE as u64, false);
    expect(edu, COPIED, "of a copy into the device")?;
    edu.copy(INSIDE, to.address()?, SIZE as u64, true);
    expect(edu, COPIED, "of a copy out of the device")?;
    match to.find(|at, byte| byte != pattern(at)) {
        Some((at, byte)) => Err(format!("byte {at} came back as {byte:#x} and not as {:#x}", pattern(at))),
        None => Ok(()),
    }
}

/// Waits for one interrupt, of this reason, and for no other.
fn expect(edu: &Edu, reason: u32, which: &str) -> Result<(), String> {
    let count = edu.wait(WITHIN).map_err(|error| error.to_string())?;
    let status = edu.status();
    edu.acknowledge(status);
    if count != 1 {
        return Err(format!("{count} interrupts {which}, with the status {status:#x}"));
    }
    if status != reason {
        return Err(format!("the status of the interrupt {which} is {status:#x} and not {reason:#x}"));
    }
    match edu.wait(Duration::ZERO).map_err(|error| error.to_string())? {
        0 => Ok(()),
        more => Err(format!("{more} interrupts more than the one {which}")),
    }
}
