//! The stamp: room beside the RAM, out of the guest's sight, that ties RAM to the state saved with it.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::mman::{MsFlags, msync};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

/// Has what was written to so many bytes of a mapping, from a page's start, outlive a loss of power, where what it is of does: out of the processor's caches, and to the disk.
///
/// # Safety
///
/// They are mapped.
pub unsafe fn persist(start: NonNull<c_void>, length: usize) -> io::Result<()> {
    const LINE: usize = 64;
    for at in (0..length).step_by(LINE) {
        // SAFETY: the line is mapped; every x86-64 processor has the instruction.
        unsafe { core::arch::x86_64::_mm_clflush(start.as_ptr().cast::<u8>().add(at)) };
    }
    // SAFETY: the caller's promise.
    match unsafe { msync(start, length, MsFlags::MS_SYNC) } {
        // A character device has nothing behind it: its stores are the storage.
        Err(Errno::EINVAL) => Ok(()),
        done => Ok(done?),
    }
}

/// Where a block's stamp lies. It is reached by mapping: a DAX device and hugetlbfs know no `write`.
#[derive(Debug, Clone)]
pub struct StampLocation {
    /// The backing.
    pub file: Arc<File>,
    /// Where the stamp starts in it, a multiple of `granularity`.
    pub offset: u64,
    /// Bytes that are there, and that a mapping must cover.
    pub granularity: u64,
}

impl StampLocation {
    /// Reads the first `bytes.len()` bytes.
    pub fn read(&self, bytes: &mut [u8]) -> io::Result<()> {
        let region = self.map(bytes.len())?;
        region.get_slice(0, bytes.len()).map_err(io::Error::other)?.copy_to(bytes);
        Ok(())
    }

    /// Writes the first `bytes.len()` bytes; they are on stable storage when it returns, where there is any.
    pub fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let region = self.map(bytes.len())?;
        region.get_slice(0, bytes.len()).map_err(io::Error::other)?.copy_from(bytes);
        let start = NonNull::new(region.as_ptr().cast()).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: the mapping is as long as that.
        unsafe { persist(start, bytes.len()) }
    }

    fn map(&self, len: usize) -> io::Result<MmapRegion> {
        if len as u64 > self.granularity {
            return Err(io::Error::other(format!(
                "a stamp of {len} bytes does not fit in {} bytes",
                self.granularity
            )));
        }
        let at = FileOffset::from_arc(self.file.clone(), self.offset);
        MmapRegion::from_file(at, self.granularity as usize).map_err(io::Error::other)
    }
}
