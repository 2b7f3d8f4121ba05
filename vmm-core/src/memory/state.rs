//! What is said about a RAM block to the side that takes it over.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cpr::format::{Section, SectionKind};

/// The kinds of RAM block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RamKind {
    /// An anonymous shared-memory file.
    Memfd,
    /// An anonymous file of huge pages.
    Hugetlb,
    /// A file with a name.
    File,
    /// A device-DAX character device.
    Dax,
    /// A firmware image in a memfd; read-only to the guest.
    Rom,
}

/// What becomes of RAM in a reboot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RamFate {
    /// It stays where it is.
    Stays,
    /// It goes into the file, and is made anew.
    Copied,
    /// The kernel keeps it for the next one.
    Preserved,
}

impl RamFate {
    /// By whether it is to be copied.
    pub fn of(copied: bool) -> Self {
        if copied { Self::Copied } else { Self::Stays }
    }
}

/// A RAM block on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamBlockState {
    /// Its name, and that of its descriptor.
    pub name: String,
    /// What it is made of.
    pub kind: RamKind,
    /// Bytes of RAM; the stamp page is not counted.
    pub size: u64,
    /// Bytes of a page of the backing; the alignment of a DAX device.
    pub page_size: u64,
    /// The seals (`F_SEAL_*`) on a memfd; 0 on others.
    pub seals: u32,
    /// Where it was opened from.
    pub path: Option<PathBuf>,
    /// A ROM's contents, where its descriptor does not travel; empty elsewhere.
    pub image: Vec<u8>,
}

impl Section for RamBlockState {
    const KIND: SectionKind = SectionKind::Ram;
    const VERSION: u16 = 1;
    const OLDEST: u16 = 1;
}
