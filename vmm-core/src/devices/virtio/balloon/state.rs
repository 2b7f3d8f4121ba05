//! Its wire form. The instance is the function's slot.

use serde::{Deserialize, Serialize};

use crate::cpr::format::{Section, SectionKind};

/// How large the balloon is, in pages of 4 KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    /// How large it is to be.
    pub target: u32,
    /// How large the driver said that it is.
    pub actual: u32,
    /// Whether the guest was offered to report free pages.
    pub reporting: bool,
}

impl Section for BalloonState {
    const KIND: SectionKind = SectionKind::VirtioBalloon;
    const VERSION: u16 = 1;
    const OLDEST: u16 = 1;
}
