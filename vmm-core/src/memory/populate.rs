//! Faulting in what is already there, outside the downtime.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::mman::{MmapAdvise, madvise};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::unistd::{Whence, lseek};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::{GuestRam, RamKind};

/// Bytes between two looks at the cancel flag: a few milliseconds of page faults.
const CHUNK: u64 = 16 << 20;

impl GuestRam {
    /// Maps the pages that the guest has already touched into this process, so that its first accesses after a
    /// handover find them. Returns the bytes done. Stops early when `cancel` is set; a kernel without
    /// `MADV_POPULATE` (before 5.14) does nothing.
    pub fn populate(&self, cancel: &AtomicBool) -> u64 {
        // Huge pages show no holes: all would be allocated. They are few, and are left to the guest's own faults.
        if self.page_size > 4096 && self.kind != RamKind::Dax {
            return 0;
        }
        let mut done = 0;
        for region in self.memory().iter() {
            let Some(at) = region.file_offset() else { continue };
            let Ok(host) = region.get_host_address(MemoryRegionAddress(0)) else { continue };
            let end = at.start() + region.len();
            let advice = self.advice(at.file());
            let mut from = at.start();
            let next = |from| match self.kind {
                RamKind::Dax => (from < end).then_some((from, end)),
                // What cannot be looked at is left to the guest's own faults.
                _ => next_data(at.file(), from, end).ok().flatten(),
            };
            while let Some((data, hole)) = next(from) {
                for start in (data..hole).step_by(CHUNK as usize) {
                    let len = CHUNK.min(hole - start);
                    if cancel.load(Ordering::Relaxed) || !advise(host, start - at.start(), len, advice) {
                        return done;
                    }
                    done += len;
                }
                from = hole;
            }
        }
        done
    }

    /// Pages of a file on a disk are faulted for reading: a write fault would make every one of them dirty.
    fn advice(&self, file: &File) -> MmapAdvise {
        let in_memory = fstatfs(file).is_ok_and(|fs| fs.filesystem_type() == TMPFS_MAGIC);
        if in_memory || self.kind == RamKind::Dax {
            MmapAdvise::MADV_POPULATE_WRITE
        } else {
            MmapAdvise::MADV_POPULATE_READ
        }
    }
}

/// The next stretch of `from..end` of a file that holds data.
pub fn next_data(file: &File, from: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
    if from >= end {
        return Ok(None);
    }
    let seek = |from: u64, what| match lseek(file, from as i64, what) {
        Ok(at) => Ok(Some(at as u64)),
        Err(Errno::ENXIO) => Ok(None),
        Err(error) => Err(io::Error::from(error)),
    };
    let Some(data) = seek(from, Whence::SeekData)?.filter(|data| *data < end) else { return Ok(None) };
    // Data that is being punched out meanwhile must not stop the walk.
    let hole = seek(data, Whence::SeekHole)?.unwrap_or(data + 1);
    Ok(Some((data, hole.clamp(data + 1, end))))
}

fn advise(host: *mut u8, offset: u64, len: u64, advice: MmapAdvise) -> bool {
    let Some(start) = NonNull::new(host.wrapping_add(offset as usize).cast::<c_void>()) else { return false };
    // SAFETY: the range lies in a live mapping of the region that `host` starts; populating changes no contents.
    unsafe { madvise(start, len as usize, advice) }.is_ok()
}
