//! What it is made with.

use serde::{Deserialize, Serialize};

/// A memory balloon (`virtio-balloon-pci`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BalloonConfig {
    /// Its id in the machine; made from driver and slot when not given.
    pub id: Option<String>,
    /// Its PCI slot, 1 to 31; the lowest free one when not given.
    pub addr: Option<u8>,
    /// Whether the guest may report pages that it does not use.
    #[serde(default)]
    pub free_page_reporting: bool,
}
