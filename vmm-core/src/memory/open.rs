//! Making and opening what RAM is made of.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{FileOffset, MmapRegion};

use super::block::Place;
use super::{MemoryError, dax};
use crate::config::{ByteSize, HugePageSize};

/// The page size of everything but huge pages and DAX.
pub(super) const PAGE_SIZE: u64 = 4096;

/// What stops the size of RAM from changing under a mapping. `F_SEAL_EXEC` is never among them: the kernel adds
/// write seals to it when a memfd comes back from a live update.
pub(super) const RAM_SEALS: SealFlag =
    SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW).union(SealFlag::F_SEAL_SEAL);

/// A memfd of `size` bytes starting with `image`, sealed against resizing.
pub(crate) fn memfd(
    name: &str,
    size: u64,
    huge: Option<HugePageSize>,
    image: &[u8],
) -> Result<File, MemoryError> {
    let kind = match huge {
        None => MFdFlags::empty(),
        Some(HugePageSize::Size2M) => MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB,
        Some(HugePageSize::Size1G) => MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_1GB,
    };
    let flags = kind | MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let fd = match memfd_create(name, flags | MFdFlags::from_bits_retain(libc::MFD_EXEC)) {
        // Kernels before 6.3 have neither the flag nor the seal that it keeps away.
        Err(nix::Error::EINVAL) => memfd_create(name, flags),
        other => other,
    }
    .map_err(MemoryError::io(name, "creating a memfd (with vm.memfd_noexec=2 none can be made)"))?;
    let file = File::from(fd);
    file.set_len(size).map_err(MemoryError::io(name, format!("sizing its memfd to {}", ByteSize(size))))?;
    file.write_all_at(image, 0).map_err(MemoryError::io(name, "filling its memfd"))?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(RAM_SEALS)).map_err(MemoryError::io(name, "sealing its memfd"))?;
    Ok(file)
}

/// Reserves the huge pages of a file, so that a guest touching its RAM cannot find none left. The file keeps the
/// reservation when the mapping that made it goes.
pub(super) fn reserve_huge_pages(
    name: &str,
    file: &Arc<File>,
    len: u64,
    page_size: u64,
) -> Result<(), MemoryError> {
    let at = FileOffset::from_arc(file.clone(), 0);
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    match MmapRegion::<()>::build(Some(at), len as usize, prot, libc::MAP_SHARED) {
        Ok(_) => Ok(()),
        Err(vm_memory::mmap::MmapRegionError::Mmap(e)) if e.raw_os_error() == Some(libc::ENOMEM) => {
            let needed = len / page_size;
            Err(MemoryError::HugePages {
                block: name.into(),
                needed,
                page_size: ByteSize(page_size),
                free: free_huge_pages(page_size),
            })
        }
        Err(e) => Err(MemoryError::io(name, "reserving huge pages")(io::Error::other(e))),
    }
}

fn free_huge_pages(page_size: u64) -> u64 {
    let count = |name: &str| -> u64 {
        let path = format!("/sys/kernel/mm/hugepages/hugepages-{}kB/{name}", page_size >> 10);
        fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    };
    count("free_hugepages").saturating_sub(count("resv_hugepages"))
}

/// Opens a file for RAM, and makes it (mode 0600) if it may.
pub(super) fn file(name: &str, path: &Path, create: bool) -> Result<File, MemoryError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(MemoryError::io(name, format!("opening {}", path.display())))?;
    let meta = file.metadata().map_err(MemoryError::io(name, format!("looking at {}", path.display())))?;
    if !meta.is_file() {
        return Err(MemoryError::Backing {
            block: name.into(),
            path: path.into(),
            found: "no regular file".into(),
            expected: "a regular file (backing=dax is for DAX devices)".into(),
        });
    }
    Ok(file)
}

/// Opens a DAX device with room for `size` bytes and the stamp, at an offset or in all of it. Gives its alignment, and where.
pub(super) fn dax(
    name: &str,
    path: &Path,
    size: u64,
    offset: Option<u64>,
) -> Result<(File, u64, Place), MemoryError> {
    let refused =
        |(found, expected)| MemoryError::Backing { block: name.into(), path: path.into(), found, expected };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(MemoryError::io(name, format!("opening {}", path.display())))?;
    let geometry = dax::geometry(&file)
        .map_err(MemoryError::io(name, format!("reading the size of {}", path.display())))?
        .ok_or_else(|| refused(("something else".into(), "a device-DAX device".into())))?;
    Ok((file, geometry.align, geometry.place(size, offset).map_err(refused)?))
}
