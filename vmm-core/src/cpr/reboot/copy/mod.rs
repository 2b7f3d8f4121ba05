//! RAM that is copied: where it would not outlive its process, it goes into the state file.
//!
//! 1. What the guest never touched, and chunks of nothing but zeros, take no room and are not allocated again.
//! 2. Each chunk has a checksum; nothing of it is used before that was found right. Memory is taken for two chunks a
//!    processor, whatever the file says.
//! 3. Such a file can be loaded once, as any: the ownership word is in its first page, and is on disk before the guest runs. A
//!    copy of the file cannot be loaded at all.
//!
//! ```text
//! 0             the stamp: a page ([`stamp`](super::stamp))
//! 4096          chunks of RAM, each compressed by zstd, or as it is where that is shorter
//! end of those  the state, as in a file without RAM; its section `ram-copy` says where which chunk is
//! at the end    the trailer: bytes of the state, and what tells a trailer
//! ```
//!
//! `layout` is where things are, `state` the section, `chunk` one chunk, `write` and `read` the two directions, each on all
//! `processors`, `progress` how far they are; `arrival` reads while the guest runs.

mod arrival;
mod chunk;
mod layout;
mod processors;
mod progress;
mod read;
mod state;
mod write;

use std::io;
use std::sync::Arc;

use memfd::MemfdOptions;

use crate::cpr::ownership::PAGE_SIZE;
use crate::memory::StampLocation;

pub use self::arrival::{Arrival, Lost};
pub use self::layout::{DATA, Layout, trailer};
pub use self::progress::Told;
pub use self::read::Copied;
pub use self::state::{ChunkState, FileIdentity, RamCopyState};
pub use self::write::{Written, most, write};

/// Why RAM could not be copied into a file, or out of one.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A system call failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, to what.
        doing: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// A chunk is not what was written.
    #[error("RAM at {at:#x}: checksum {found:#010x}; expected {expected:#010x}")]
    Damaged {
        /// Where it goes in the RAM.
        at: u64,
        /// CRC-32 of what is there.
        found: u32,
        /// CRC-32 that was written down.
        expected: u32,
    },
    /// The file is a copy of the one that was written.
    #[error(
        "this file is a copy of the one that was saved, and the guest may live on from that one ({found}; expected \
         {expected}): load that one, which stays what it is when it is renamed"
    )]
    AnotherFile {
        /// What it is.
        found: FileIdentity,
        /// What the one was that was written.
        expected: FileIdentity,
    },
    /// The file says what cannot be.
    #[error("the copy of the RAM has {found}; expected {expected}")]
    Impossible {
        /// What it says.
        found: String,
        /// What it may say.
        expected: String,
    },
    /// Somebody asked for an end.
    #[error("cancelled")]
    Cancelled,
}

impl CopyError {
    fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}

/// A page for a stamp, that only this process has: a page of a file on a disk can fail whoever writes to its mapping.
pub fn blank_stamp() -> io::Result<StampLocation> {
    let page = MemfdOptions::new().create("stamp").map_err(io::Error::other)?.into_file();
    page.set_len(PAGE_SIZE)?;
    Ok(StampLocation { file: Arc::new(page), offset: 0, granularity: PAGE_SIZE })
}
