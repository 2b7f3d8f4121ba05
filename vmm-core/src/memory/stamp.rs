//! The stamp: room beside the RAM, out of the guest's sight, that ties RAM to the state saved with it.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

/// Has what is in a processor's caches of so many bytes written to memory, which may be persistent.
///
/// # Safety
///
/// They are mapped.
pub unsafe fn write_back(start: *const u8, length: usize) {
    const LINE: usize = 64;
    for at in (0..length).step_by(LINE) {
        // SAFETY: the line is mapped; every x86-64 processor has the instruction.
        unsafe { core::arch::x86_64::_mm_clflush(start.add(at)) };
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
        // SAFETY: the mapping is as long as that.
        unsafe { write_back(region.as_ptr(), bytes.len()) };
        match self.file.sync_data() {
            // A character device cannot be synced: its stores are the storage.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            other => other,
        }
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
