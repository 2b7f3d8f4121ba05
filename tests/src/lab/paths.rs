//! Where the lab's host has what belongs to a guest, by the guest's name.

use std::path::{Path, PathBuf};

use super::dax;
use super::kexec::KEPT;
use super::scenario::{Backing, Guest};

/// The two guests that there can be.
pub const GUESTS: [&str; 2] = ["vm1", "vm2"];
/// Where the commands' sockets are.
pub const RUNTIME: &str = "/run/cpr";
/// Where the logs of `cpr-load` are.
pub const LOGS: &str = "/run/log";

/// The socket that the guest program talks to the lab over.
pub fn serial(name: &str) -> PathBuf {
    Path::new(RUNTIME).join(format!("{name}.serial"))
}

/// The serial socket of a guest whose userland has its own console there.
pub fn tty(name: &str) -> PathBuf {
    Path::new(RUNTIME).join(format!("{name}.tty"))
}

/// A socket that processes of the lab's meet at for a guest.
pub fn meeting(name: &str, which: &str) -> PathBuf {
    Path::new(RUNTIME).join(format!("{name}.{which}"))
}

/// Where a guest's agent is asked.
pub fn agent(name: &str) -> PathBuf {
    Path::new(RUNTIME).join(format!("{name}.agent"))
}

/// What a guest that talks over a virtio console has on its serial port: its kernel's last words, if it panics.
pub fn serial_log(name: &str) -> PathBuf {
    Path::new("/run").join(format!("{name}-serial.log"))
}

/// What a guest's program wrote to the lab.
pub fn console_log(name: &str) -> PathBuf {
    Path::new("/run").join(format!("{name}-console.log"))
}

/// What a guest's userland wrote to its serial port.
pub fn tty_log(name: &str) -> PathBuf {
    Path::new("/run").join(format!("{name}-tty.log"))
}

/// Where a guest has its RAM, unless in a memfd.
pub fn ram(name: &str, guest: &Guest) -> Option<PathBuf> {
    match guest.backing {
        Backing::Dax => Some(dax::device_of(name, guest)),
        Backing::File => Some(Path::new("/dev/shm").join(name)),
        Backing::Memfd => None,
    }
}

/// Where a guest is saved to.
pub fn state_file(name: &str) -> PathBuf {
    Path::new(RUNTIME).join(format!("{name}.state"))
}

/// Where a guest is saved to for the host's next kernel.
pub fn kept_state_file(name: &str) -> PathBuf {
    Path::new(KEPT).join(format!("{name}.state"))
}

/// What the process with this number has said, of those that had a guest.
pub fn log(name: &str, index: u32) -> PathBuf {
    Path::new(LOGS).join(format!("{name}-cpr-load-{index}.log"))
}
