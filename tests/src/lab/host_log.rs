//! The log of the host's kernel, watched for what it says of assigned devices.
//!
//! 1. While the guest runs nothing may be said of them: a reset is said, too.
//! 2. Before and after that a device is opened and closed, which resets it: only what went wrong counts then.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result};
use guest_init::kernel_log;

/// What a message of a fault has in it, whichever device it is of: each word of one of the lists, in lower case.
const FAULTS: [&[&str]; 8] = [
    &["dmar", "fault"],
    &["dmar", "error"],
    &["iommu", "fault"],
    &["iommu", "error"],
    &["vfio", "rlimit"],
    &["vfio", "failed"],
    &["vfio", "timed out"],
    &["nobody cared"],
];
/// What vfio-pci says when a device is asked back.
const ASKED_BACK: &str = "Relaying device request to user";
/// What a message has in it that concerns assigned devices, besides their addresses.
const CONCERNS: [&str; 4] = ["vfio", "dmar", "iommu", "aer:"];
/// The classes of a guest's messages that are trouble in any kernel, however long it is kept waiting.
const CLASSES: [&str; 3] = ["oops", "bug", "warning"];

/// The log, from where it was read to.
pub struct HostLog {
    log: File,
    addresses: Vec<String>,
}

impl HostLog {
    /// Watches it from now on for what is said of the devices with these addresses.
    pub fn open(addresses: Vec<String>) -> Result<Self> {
        const LOG: &str = "/dev/kmsg";
        let mut log = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(LOG).context(LOG)?;
        log.seek(SeekFrom::End(0)).context(LOG)?;
        Ok(Self { log, addresses })
    }

    /// What was said since it was last read that tells that something went wrong.
    pub fn faults(&mut self) -> Vec<String> {
        self.messages().into_iter().filter(|message| is_fault(message)).collect()
    }

    /// What was said since it was last read of the devices and of what they are assigned by, whatever it is.
    pub fn all(&mut self) -> Vec<String> {
        let messages = self.messages();
        messages
            .into_iter()
            .filter(|message| is_fault(message) || concerns(message, &self.addresses))
            .filter(|message| !message.contains(ASKED_BACK))
            .collect()
    }

    fn messages(&mut self) -> Vec<String> {
        let mut messages = Vec::new();
        let mut record = vec![0; 8192];
        loop {
            match self.log.read(&mut record) {
                Ok(length) => {
                    let text = String::from_utf8_lossy(&record[..length]);
                    messages.extend(kernel_log::message(&text).map(str::to_owned));
                }
                // Messages were overwritten before they were read; the next read goes on after them.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(_) => return messages,
            }
        }
    }
}

fn is_fault(message: &str) -> bool {
    let lower = message.to_lowercase();
    FAULTS.iter().any(|words| words.iter().all(|word| lower.contains(word)))
        || kernel_log::class(message).is_some_and(|class| CLASSES.contains(&class))
}

fn concerns(message: &str, addresses: &[String]) -> bool {
    let lower = message.to_lowercase();
    let named = addresses.iter().any(|address| lower.contains(address.as_str()));
    named || CONCERNS.iter().any(|word| lower.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_one_at_any_time() {
        for message in [
            "DMAR: [DMA Write NO_PASID] Request device [00:10.0] fault addr 0xfffff000 [fault reason 0x05] PTE Write access is not set",
            "DMAR: DRHD: handling fault status reg 2",
            "vfio_pin_pages_remote: RLIMIT_MEMLOCK (8388608) exceeded",
            "irq 24: nobody cared (try booting with the \"irqpoll\" option)",
            "BUG: kernel NULL pointer dereference, address: 0000000000000000",
        ] {
            assert!(is_fault(message), "{message}");
        }
    }

    #[test]
    fn a_reset_is_only_said_to_be_one_while_the_guest_runs() {
        let addresses = ["0000:00:10.0".to_owned()];
        for message in
            ["vfio-pci 0000:00:10.0: resetting", "nvme 0000:00:10.0: enabling device (0000 -> 0002)"]
        {
            assert!(!is_fault(message) && concerns(message, &addresses), "{message}");
        }
        for message in
            ["nvme 0000:00:11.0: enabling device (0000 -> 0002)", "tun: Universal TUN/TAP device driver"]
        {
            assert!(!is_fault(message) && !concerns(message, &addresses), "{message}");
        }
    }
}
