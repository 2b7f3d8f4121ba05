//! Gives pages of RAM back to the host.

use std::ops::Range;

use nix::fcntl::{FallocateFlags, fallocate};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Punches the whole pages of `page` bytes in a range of guest addresses out of what the RAM is. What is not RAM, and RAM that
/// is no file, is left alone.
pub(super) fn punch(memory: &GuestMemoryMmap, page: u64, range: &Range<u64>) -> std::io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let Some(region) = memory.find_region(GuestAddress(at)) else { return Ok(()) };
        let start = region.start_addr().0;
        let end = start.saturating_add(region.len()).min(range.end);
        if let Some(file) = region.file_offset() {
            // By offsets in the file: that is where its pages are.
            let offset = |address: u64| file.start() + (address - start);
            let (from, to) = (offset(at).next_multiple_of(page), offset(end) / page * page);
            if from < to {
                let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                fallocate(file.file(), flags, from as i64, (to - from) as i64)?;
            }
        }
        at = end;
    }
    Ok(())
}
