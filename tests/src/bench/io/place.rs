//! Where it is measured: the files and devices that both contenders use.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Options;
use super::plan::Part;

/// Bytes of a disk. It is less than what anyone caches.
pub const DISK: u64 = 64 << 20;

/// Who is compared with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Other {
    /// QEMU.
    Qemu {
        /// Where it lies with all that it needs ([`super::program`]), if it is not the system's.
        root: Option<PathBuf>,
        /// Whether each disk has a thread of its own.
        iothread: bool,
    },
    /// Another one of ours.
    Ours(PathBuf),
}

impl Other {
    /// What it is called in the table.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Qemu { .. } => "QEMU",
            Self::Ours(_) => "other",
        }
    }
}

/// Where it is measured, and how long.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Place {
    /// Ours.
    pub cpr_load: PathBuf,
    /// Who is compared with.
    pub other: Other,
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// The guest's initial RAM disk.
    pub initrd: PathBuf,
    /// For sockets, logs and state.
    pub directory: PathBuf,
    /// Images or block devices: one that is used past the page cache and one through it; two more where the other
    /// contender cannot have the same.
    pub disks: Vec<PathBuf>,
    /// Whether `/dev/vhost-net` is there.
    pub vhost: bool,
    /// How often.
    pub rounds: u32,
    /// How long each time, in milliseconds.
    pub ms: u64,
    /// Only this part.
    pub only: Option<Part>,
}

impl Place {
    /// How many disks are needed: an image that is written has one owner of ours, while QEMU can be told not to mind.
    pub fn disks_needed(options: &Options) -> usize {
        if options.against.is_some() { 4 } else { 2 }
    }

    /// Whether this part is measured.
    pub fn has(&self, part: Part) -> bool {
        self.only.is_none_or(|only| only == part)
    }
}

/// Content for a disk: nothing that compresses or is zero. A hole would be read faster than any data.
pub fn content() -> impl Iterator<Item = Vec<u8>> {
    const PIECE: usize = 1 << 20;
    let mut state = 1_u64;
    (0..DISK / PIECE as u64).map(move |_| {
        let word = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_le_bytes()
        };
        std::iter::repeat_with(word).take(PIECE / 8).flatten().collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_filled_with_what_is_not_zero() {
        let pieces: Vec<_> = content().collect();
        assert_eq!(pieces.iter().map(|piece| piece.len() as u64).sum::<u64>(), DISK);
        assert!(pieces.iter().all(|piece| piece.chunks(4096).all(|page| page.iter().any(|byte| *byte != 0))));
        assert_ne!(pieces[0], pieces[1]);
    }
}
