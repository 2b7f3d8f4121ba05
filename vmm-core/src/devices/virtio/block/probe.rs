//! What the kernel says about an image.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

/// The ioctls' numbers (linux/fs.h).
mod nr {
    use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr};

    ioctl_io_nr!(BLKROGET, 0x12, 94);
    ioctl_io_nr!(BLKSSZGET, 0x12, 104);
    ioctl_ior_nr!(BLKGETSIZE64, 0x12, 114, u64);
}

/// What an image is on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageKind {
    /// A regular file.
    File,
    /// A block device.
    BlockDevice,
}

impl std::fmt::Display for ImageKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::File => "a regular file",
            Self::BlockDevice => "a block device",
        })
    }
}

/// What direct I/O must be aligned to, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alignment {
    /// Of addresses in memory.
    pub memory: u32,
    /// Of offsets in the image and of lengths.
    pub offset: u32,
}

/// What an image is; `None` for what no disk can be made of.
pub(super) fn kind(file: &File) -> io::Result<Option<ImageKind>> {
    let kind = file.metadata()?.file_type();
    Ok(match (kind.is_file(), kind.is_block_device()) {
        (true, _) => Some(ImageKind::File),
        (_, true) => Some(ImageKind::BlockDevice),
        _ => None,
    })
}

/// Its size in bytes.
pub(super) fn size(file: &File, kind: ImageKind) -> io::Result<u64> {
    match kind {
        ImageKind::File => Ok(file.metadata()?.len()),
        ImageKind::BlockDevice => {
            let mut size = 0_u64;
            // SAFETY: BLKGETSIZE64 writes a u64.
            check(unsafe { ioctl_with_mut_ref(file, nr::BLKGETSIZE64(), &mut size) })?;
            Ok(size)
        }
    }
}

/// A block device's logical block size in bytes.
pub(super) fn logical_block(file: &File) -> io::Result<u32> {
    let mut size: libc::c_int = 0;
    // SAFETY: BLKSSZGET writes an int.
    check(unsafe { ioctl_with_mut_ref(file, nr::BLKSSZGET(), &mut size) })?;
    Ok(size as u32)
}

/// Whether a block device refuses to be written to.
pub(super) fn is_read_only(file: &File) -> io::Result<bool> {
    let mut read_only: libc::c_int = 0;
    // SAFETY: BLKROGET writes an int.
    check(unsafe { ioctl_with_mut_ref(file, nr::BLKROGET(), &mut read_only) })?;
    Ok(read_only != 0)
}

/// What direct I/O must be aligned to. Kernels before 6.1 do not say: then it is the logical block of a device, and a
/// page for a file.
pub(super) fn alignment(file: &File, kind: ImageKind) -> io::Result<Alignment> {
    // SAFETY: a statx of zeroes is a valid value.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a C string, and `stat` is a statx for the kernel to fill.
    check(unsafe {
        libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &raw mut stat)
    })?;
    let (memory, offset) = (stat.stx_dio_mem_align, stat.stx_dio_offset_align);
    if stat.stx_mask & libc::STATX_DIOALIGN == 0 {
        let block = match kind {
            ImageKind::File => 4096,
            ImageKind::BlockDevice => logical_block(file)?,
        };
        return Ok(Alignment { memory: block, offset: block });
    }
    if memory == 0 || offset == 0 {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "the file system has no direct I/O for it"));
    }
    Ok(Alignment { memory, offset })
}

/// A block device's directory in sysfs.
pub(super) fn sysfs(file: &File) -> io::Result<PathBuf> {
    let device = file.metadata()?.rdev();
    Ok(format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device)).into())
}

/// Whether a block device can discard. A partition's limits are its disk's.
pub(super) fn can_discard(file: &File) -> io::Result<bool> {
    let sysfs = sysfs(file)?;
    let limit = ["queue", "../queue"]
        .into_iter()
        .find_map(|queue| fs::read_to_string(sysfs.join(queue).join("discard_max_bytes")).ok());
    Ok(limit.is_some_and(|bytes| bytes.trim() != "0"))
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
