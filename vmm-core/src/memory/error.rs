//! Why RAM could not be made, opened or mapped.

use std::io;
use std::path::PathBuf;

use super::lock::Extent;
use crate::config::ByteSize;

/// Why RAM could not be made, opened or mapped.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A system call failed.
    #[error("RAM block {block}: {doing}: {source}")]
    Io {
        /// The block's name.
        block: String,
        /// What was being done, to what.
        doing: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The host has too few huge pages.
    #[error(
        "RAM block {block}: needs {needed} huge pages of {page_size}, {free} are free; \
         make more with: echo N > /sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages", .page_size.0 >> 10
    )]
    HugePages {
        /// The block's name.
        block: String,
        /// Pages needed.
        needed: u64,
        /// The size of one.
        page_size: ByteSize,
        /// Pages that are neither used nor reserved.
        free: u64,
    },
    /// Another process holds the lock on the backing.
    #[error("RAM block {block}: {}{}", path.display(), in_use(wanted, held))]
    InUse {
        /// The block's name.
        block: String,
        /// The file or device.
        path: PathBuf,
        /// What of it was to be this guest's.
        wanted: Extent,
        /// What another has.
        held: Extent,
    },
    /// What is at the path cannot be this RAM.
    #[error("RAM block {block}: {} is {found}; expected {expected}", path.display())]
    Backing {
        /// The block's name.
        block: String,
        /// The file or device.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// A size, an offset or a guest address does not fit.
    #[error("RAM block {block}: {found}; expected {expected}")]
    Layout {
        /// The block's name.
        block: String,
        /// What was asked for.
        found: String,
        /// What would do.
        expected: String,
    },
    /// KVM refused a memory slot.
    #[error("memory slot {slot} at {guest_addr:#x}, {size}: {source}")]
    Slot {
        /// The slot's number.
        slot: u32,
        /// Where it starts in the guest.
        guest_addr: u64,
        /// How long it is.
        size: ByteSize,
        /// What KVM answered.
        source: io::Error,
    },
}

/// Who wants what, and who has what.
fn in_use(wanted: &Extent, held: &Extent) -> String {
    match (wanted, held) {
        (Extent::All, Extent::All) => " is in use by another guest".into(),
        (Extent::All, part) => format!(" is in use by another guest, which has {part} of it"),
        (part, held) => format!(", {part}, is in use by another guest, which has {held} of it"),
    }
}

impl MemoryError {
    /// Whether there is nothing where the RAM should be.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// For `map_err`: a system call on `block` failed while `doing` something.
    pub(super) fn io<E: Into<io::Error>>(block: &str, doing: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { block: block.into(), doing: doing.into(), source: source.into() }
    }
}
