//! Its wire form.

use serde::{Deserialize, Serialize};

use super::mac::Mac;
use crate::cpr::format::{Section, SectionKind};

/// What the driver of a network device has set, and what it knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// The address that the guest has seen.
    pub mac: Mac,
    /// Pairs of queues that are used.
    pub pairs: u16,
    /// The guest has been asked to announce itself and has not done so yet.
    pub announce: bool,
}

impl Section for NetState {
    const KIND: SectionKind = SectionKind::VirtioNet;
    const VERSION: u16 = 1;
    const OLDEST: u16 = 1;
}
