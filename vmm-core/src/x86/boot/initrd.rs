//! Loads an initrd as high as the kernel allows, out of the way of what it unpacks.

use std::path::Path;

use vm_memory::GuestMemoryMmap;

use super::file::BootFile;
use super::{BootError, Initrd, Kernel};

const PAGE: u64 = 4096;

/// Loads the initrd at `path` above `kernel` and below `ram_end`.
pub(super) fn load(
    path: &Path,
    memory: &GuestMemoryMmap,
    kernel: &Kernel,
    ram_end: u64,
) -> Result<Initrd, BootError> {
    let mut file = BootFile::open("initrd", path)?;
    if file.size == 0 {
        return Err(file.too_short(1));
    }
    let end = ram_end.min(kernel.initrd_max.saturating_add(1));
    let address = end
        .checked_sub(file.size)
        .map(|start| start & !(PAGE - 1))
        .filter(|start| *start >= kernel.end)
        .ok_or_else(|| BootError::InitrdDoesNotFit {
            path: path.to_owned(),
            size: file.size,
            start: kernel.end,
            end,
        })?;
    file.read_to(address, memory)?;
    Ok(Initrd { address, size: file.size })
}
