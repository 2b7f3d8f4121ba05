//! Guest RAM seen from outside: a mapped memfd or file.

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use anyhow::{Context, ensure};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// A shared mapping of a guest's RAM.
#[derive(Debug)]
pub struct Ram {
    start: NonNull<u8>,
    length: u64,
    file: File,
}

// SAFETY: every access is atomic or, in `write`, of bytes that the caller says nobody else touches.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

impl Ram {
    /// Maps the whole of a memfd or file.
    pub fn map(file: File) -> anyhow::Result<Self> {
        let length = file.metadata().context("reading the size of guest RAM")?.len();
        let size = NonZeroUsize::new(length as usize).context("mapping guest RAM: it is empty")?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, where the kernel likes it.
        let start = unsafe { mmap(None, size, access, MapFlags::MAP_SHARED, file.as_fd(), 0) }
            .context("mapping guest RAM")?
            .cast();
        Ok(Self { start, length, file })
    }

    /// New, zeroed RAM in a memfd.
    pub fn anonymous(name: &str, length: u64) -> anyhow::Result<Self> {
        let file = File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC).context("creating a memfd")?);
        file.set_len(length).context("sizing a memfd")?;
        Self::map(file)
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether there are none; never.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Where it is mapped here.
    pub fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// The descriptor behind it.
    pub fn file(&self) -> &File {
        &self.file
    }

    fn at(&self, offset: u64, size: u64) -> *mut u8 {
        let inside = offset.is_multiple_of(size) && offset + size <= self.length;
        assert!(inside, "guest address {offset:#x} is not in {:#x} bytes of RAM", self.length);
        // SAFETY: inside the mapping, as just checked.
        unsafe { self.start.as_ptr().add(offset as usize) }
    }

    /// The aligned 64-bit word at a guest address.
    pub fn u64(&self, address: u64) -> &AtomicU64 {
        // SAFETY: inside the mapping and aligned (`at`), which lives as long as `self`.
        unsafe { AtomicU64::from_ptr(self.at(address, 8).cast()) }
    }

    /// The aligned 32-bit word at a guest address.
    pub fn u32(&self, address: u64) -> &AtomicU32 {
        // SAFETY: inside the mapping and aligned (`at`), which lives as long as `self`.
        unsafe { AtomicU32::from_ptr(self.at(address, 4).cast()) }
    }

    /// Writes bytes that the guest does not touch meanwhile.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        for (address, byte) in (address..).zip(bytes) {
            // SAFETY: inside the mapping.
            unsafe { self.at(address, 1).write_volatile(*byte) };
        }
    }

    /// Touches every page up to `end`, as a guest that uses its RAM has.
    pub fn touch(&self, from: u64, end: u64) -> anyhow::Result<()> {
        ensure!(end <= self.length, "touching {end:#x} bytes of RAM: there are {:#x}", self.length);
        for address in (from..end).step_by(4096) {
            self.u64(address).fetch_or(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`; no reference to it outlives `self`.
        let _ = unsafe { munmap(self.start.cast(), self.length as usize) };
    }
}
