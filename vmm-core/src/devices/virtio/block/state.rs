//! Its wire form.

use serde::{Deserialize, Serialize};

use super::identity::ImageIdentity;
use crate::cpr::format::{Section, SectionKind};

/// What a disk's configuration does not say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// What its image was.
    pub identity: ImageIdentity,
    /// Its logical block in bytes: the guest has seen it.
    pub block_size: u32,
}

impl Section for BlockState {
    const KIND: SectionKind = SectionKind::VirtioBlock;
    const VERSION: u16 = 1;
    const OLDEST: u16 = 1;
}
