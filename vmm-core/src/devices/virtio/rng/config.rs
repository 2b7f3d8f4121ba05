//! What it is made with.

use serde::{Deserialize, Serialize};

/// An entropy device (`virtio-rng-pci`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RngConfig {
    /// Its id in the machine; made from driver and slot when not given.
    pub id: Option<String>,
    /// Its PCI slot, 1 to 31; the lowest free one when not given.
    pub addr: Option<u8>,
}
