//! The transport on the wire. The instance is the function's slot.

use serde::{Deserialize, Serialize};

use crate::cpr::format::{Section, SectionKind};

/// The registers of a virtio device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioState {
    /// The features that it offers: the same for all of a guest's life.
    pub offered: u64,
    /// Which half of them is shown.
    pub device_feature_select: u32,
    /// Which half of the driver's is shown.
    pub driver_feature_select: u32,
    /// The features that the driver took.
    pub features: u64,
    /// Device status, without `DEVICE_NEEDS_RESET`.
    pub status: u8,
    /// Whether the driver broke the rules, or the device cannot go on.
    pub needs_reset: bool,
    /// The ISR register.
    pub isr: u8,
    /// The configuration's MSI-X vector; 0xffff for none.
    pub config_vector: u16,
    /// Which queue is shown.
    pub queue_select: u16,
    /// The queues.
    pub queues: Vec<VirtioQueueState>,
}

/// A queue, with nothing in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioQueueState {
    /// Descriptors that it has.
    pub size: u16,
    /// Whether the driver has enabled it.
    pub enabled: bool,
    /// Its MSI-X vector; 0xffff for none.
    pub vector: u16,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the available ring.
    pub available: u64,
    /// Guest address of the used ring.
    pub used: u64,
    /// The next index that the device takes from the available ring.
    pub next_available: u16,
    /// The next index that the device puts in the used ring.
    pub next_used: u16,
}

impl Section for VirtioState {
    const KIND: SectionKind = SectionKind::Virtio;
    const VERSION: u16 = 1;
    const OLDEST: u16 = 1;
}
