//! A page that two processes map: magic, version, ownership word, and what its user keeps after them.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::memory::persist;

/// Bytes of the page.
pub const PAGE_SIZE: u64 = 4096;

const WORDS: usize = PAGE_SIZE as usize / size_of::<AtomicU32>();

/// Where the magic, the version and the ownership word are, counted in 32-bit words.
const MAGIC_AT: usize = 0;
const VERSION_AT: usize = 2;
const WORD_AT: usize = 3;

/// Bytes before what the page's user keeps.
pub(crate) const FIELDS_AT: usize = 16;

/// Why a shared page cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// Its place cannot be mapped.
    #[error("a page at offset {offset:#x} cannot be mapped by multiples of {granularity:#x}")]
    Place {
        /// Bytes from the beginning of the file.
        offset: u64,
        /// What address and length of a mapping must be multiples of.
        granularity: u64,
    },
    /// It does not begin with its magic.
    #[error("its page begins with {found:02x?}; expected {expected:02x?}")]
    Magic {
        /// The first bytes.
        found: [u8; 8],
        /// The magic.
        expected: [u8; 8],
    },
    /// Its layout is of another version.
    #[error("its page is of version {found}; this build reads version {expected}")]
    Version {
        /// The version it is of.
        found: u32,
        /// The version this build reads.
        expected: u32,
    },
    /// The kernel refused to map it.
    #[error("mapping the page at offset {offset:#x}: {source}")]
    Map {
        /// Bytes from the beginning of the file.
        offset: u64,
        /// What the kernel answered.
        source: io::Error,
    },
}

/// A page mapped shared. Every access is to an atomic, as the other process may be writing.
#[derive(Debug)]
pub(crate) struct SharedPage {
    mapping: NonNull<libc::c_void>,
    length: usize,
    page: NonNull<AtomicU32>,
}

// SAFETY: the mapping belongs to no thread, and the page is only reached as `&[AtomicU32]`.
unsafe impl Send for SharedPage {}
// SAFETY: as above.
unsafe impl Sync for SharedPage {}

impl SharedPage {
    /// Maps the page at `offset`, a multiple of [`PAGE_SIZE`], of a file that has it, by a mapping whose offset and
    /// length are multiples of `granularity` (a power of two; a DAX device's alignment).
    pub fn map(fd: BorrowedFd<'_>, offset: u64, granularity: u64) -> Result<Self, PageError> {
        let place = || PageError::Place { offset, granularity };
        if !granularity.is_power_of_two() || granularity < PAGE_SIZE || !offset.is_multiple_of(PAGE_SIZE) {
            return Err(place());
        }
        let start = offset & !(granularity - 1);
        let length = usize::try_from(granularity).ok().and_then(NonZeroUsize::new).ok_or_else(place)?;
        let file_offset = i64::try_from(start).map_err(|_| place())?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no other.
        let mapping = unsafe {
            let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            mmap(None, length, prot, MapFlags::MAP_SHARED, fd, file_offset)
        }
        .map_err(|errno| PageError::Map { offset, source: errno.into() })?;
        // SAFETY: `offset - start` is less than `granularity`, the mapping's length, and both are multiples of a page.
        let page = unsafe { mapping.byte_add((offset - start) as usize) }.cast();
        Ok(Self { mapping, length: length.get(), page })
    }

    /// The page, as words.
    fn words(&self) -> &[AtomicU32] {
        // SAFETY: the page is mapped, readable, writable and aligned for as long as `self` lives; any bytes are valid
        // words; and every process reaches it by atomic accesses only.
        unsafe { std::slice::from_raw_parts(self.page.as_ptr(), WORDS) }
    }

    /// The ownership word.
    pub fn word(&self) -> &AtomicU32 {
        &self.words()[WORD_AT]
    }

    /// Writes magic and version, and the word of a new guest: the source's.
    pub fn begin(&self, magic: [u8; 8], version: u32) {
        super::word::renew(self.word());
        self.write(VERSION_AT, &version.to_ne_bytes());
        self.write(MAGIC_AT, &magic);
    }

    /// Checks magic and version.
    pub fn check(&self, magic: [u8; 8], version: u32) -> Result<(), PageError> {
        let found = self.read(MAGIC_AT);
        if found != magic {
            return Err(PageError::Magic { found, expected: magic });
        }
        let found = u32::from_ne_bytes(self.read(VERSION_AT));
        if found != version {
            return Err(PageError::Version { found, expected: version });
        }
        Ok(())
    }

    /// Reads what the page's user keeps in it. `N` is a multiple of 4, at most what is left of the page.
    pub fn fields<const N: usize>(&self) -> [u8; N] {
        self.read(FIELDS_AT / 4)
    }

    /// Writes what the page's user keeps in it, with a length as in [`Self::fields`].
    pub fn set_fields(&self, bytes: &[u8]) {
        self.write(FIELDS_AT / 4, bytes);
    }

    /// Has what was written to the page outlive a loss of power, where what it is in does.
    pub fn persist(&self) -> io::Result<()> {
        // SAFETY: the page is mapped.
        unsafe { persist(self.page.cast(), PAGE_SIZE as usize) }
    }

    fn read<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(&self.words()[at..]) {
            chunk.copy_from_slice(&word.load(Ordering::Acquire).to_ne_bytes());
        }
        bytes
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        for (chunk, word) in bytes.as_chunks().0.iter().zip(&self.words()[at..]) {
            word.store(u32::from_ne_bytes(*chunk), Ordering::Release);
        }
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, whole, and no reference into it outlives `self`.
        let unmapped = unsafe { munmap(self.mapping, self.length) };
        debug_assert!(unmapped.is_ok(), "a mapping that was made can be unmapped");
    }
}
