//! What it is made with.

use serde::{Deserialize, Serialize};

/// Sockets between guest and host (`vhost-vsock-pci`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VsockConfig {
    /// Its id in the machine; made from driver and slot when not given.
    pub id: Option<String>,
    /// Its PCI slot, 1 to 31; the lowest free one when not given.
    pub addr: Option<u8>,
    /// The guest's address, 3 to 0xfffffffe, which no other guest on the host has.
    pub guest_cid: u32,
}

impl VsockConfig {
    /// Finds an address that no guest can have.
    pub fn validate(&self) -> Result<(), String> {
        match self.guest_cid {
            // virtio 1.2, 5.10.4: reserved, and the host's.
            0..=2 | u32::MAX => Err(format!("guest-cid {}; expected 3 to {}", self.guest_cid, u32::MAX - 1)),
            _ => Ok(()),
        }
    }
}
