//! Faulting in what is already there, outside the downtime.

use std::ffi::c_void;
use std::fs::File;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

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
            while let Some((data, hole)) = self.next_data(at.file(), from, end) {
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

    /// The next stretch of `from..end` that holds data.
    fn next_data(&self, file: &File, from: u64, end: u64) -> Option<(u64, u64)> {
        if from >= end {
            return None;
        }
        if self.kind == RamKind::Dax {
            return Some((from, end));
        }
        let data = lseek(file, from as i64, Whence::SeekData).ok()? as u64;
        if data >= end {
            return None;
        }
        let hole = lseek(file, data as i64, Whence::SeekHole).ok()? as u64;
        // Data that is being punched out meanwhile must not stop the walk.
        Some((data, hole.clamp(data + 1, end)))
    }
}

fn advise(host: *mut u8, offset: u64, len: u64, advice: MmapAdvise) -> bool {
    let Some(start) = NonNull::new(host.wrapping_add(offset as usize).cast::<c_void>()) else { return false };
    // SAFETY: the range lies in a live mapping of the region that `host` starts; populating changes no contents.
    unsafe { madvise(start, len as usize, advice) }.is_ok()
}
