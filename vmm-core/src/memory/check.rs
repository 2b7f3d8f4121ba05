//! Whether a received descriptor is the RAM block that it claims to be.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::statfs::{HUGETLBFS_MAGIC, TMPFS_MAGIC, fstatfs};

use super::block::Place;
use super::lock::{self, Extent};
use super::open::{PAGE_SIZE, RAM_SEALS};
use super::{RamBlock, RamBlockState, RamKind, dax};
use crate::config::{ByteSize, HugePageSize};
use crate::cpr::fds::{FdError, FdName};

/// No guest has more RAM; a larger number would overflow what is computed from it.
const MAX_SIZE: u64 = 1 << 44;

pub(super) fn adopt(
    name: &str,
    fd: OwnedFd,
    offset: Option<u64>,
    state: &RamBlockState,
) -> Result<RamBlock, FdError> {
    let file = Arc::new(File::from(fd));
    let check = Check { name: FdName::new(name, 0), file: &file, state };
    check.claim(name)?;
    check.writable()?;
    let place = match state.kind {
        RamKind::Memfd | RamKind::Rom => check.memfd(PAGE_SIZE).map(|()| Place::all(None))?,
        RamKind::Hugetlb => check.memfd(state.page_size).map(|()| Place::all(None))?,
        RamKind::File => check.file()?,
        RamKind::Dax => check.dax(offset)?,
    };
    Ok(RamBlock {
        name: name.into(),
        file,
        kind: state.kind,
        size: state.size,
        page_size: state.page_size,
        seals: state.seals,
        path: state.path.clone(),
        place,
    })
}

/// Whether a file, or a directory's files, are on a file system that ends with the kernel, or may be.
pub fn is_in_memory(file: &File) -> bool {
    const RAMFS_MAGIC: i64 = 0x8584_58f6;
    fstatfs(file).map_or(true, |fs| {
        let kind = fs.filesystem_type();
        [TMPFS_MAGIC, HUGETLBFS_MAGIC].contains(&kind) || kind.0 == RAMFS_MAGIC
    })
}

/// The page size of the file system that a file is on.
pub(super) fn page_size_of(file: &File) -> io::Result<u64> {
    let fs = fstatfs(file)?;
    Ok(if fs.filesystem_type() == HUGETLBFS_MAGIC { fs.block_size() as u64 } else { PAGE_SIZE })
}

struct Check<'a> {
    name: FdName,
    file: &'a File,
    state: &'a RamBlockState,
}

impl Check<'_> {
    fn wrong(&self, found: impl Into<String>, expected: impl Into<String>) -> FdError {
        FdError::Wrong { name: self.name.clone(), found: found.into(), expected: expected.into() }
    }

    fn io<E: Into<io::Error>>(&self, doing: &'static str) -> impl FnOnce(E) -> FdError {
        let name = self.name.clone();
        move |source| FdError::Io { name, doing, source: source.into() }
    }

    /// The state itself: what it says must be possible.
    fn claim(&self, name: &str) -> Result<(), FdError> {
        let RamBlockState { kind, size, page_size, .. } = *self.state;
        if self.state.name != name {
            return Err(self.wrong(format!("RAM block '{}'", self.state.name), format!("'{name}'")));
        }
        let pages_ok = match kind {
            RamKind::Memfd | RamKind::Rom => page_size == PAGE_SIZE,
            RamKind::Hugetlb => {
                [HugePageSize::Size2M, HugePageSize::Size1G].map(HugePageSize::bytes).contains(&page_size)
            }
            RamKind::File | RamKind::Dax => page_size.is_power_of_two() && page_size >= PAGE_SIZE,
        };
        if pages_ok && size != 0 && size <= MAX_SIZE && size.is_multiple_of(page_size) {
            return Ok(());
        }
        Err(self.wrong(
            format!("said to be {} of {kind:?} in pages of {}", ByteSize(size), ByteSize(page_size)),
            format!("at most {} in whole pages of a size that it can have", ByteSize(MAX_SIZE)),
        ))
    }

    fn writable(&self) -> Result<(), FdError> {
        let flags = fcntl(self.file, FcntlArg::F_GETFL).map_err(self.io("reading its flags"))?;
        if OFlag::from_bits_truncate(flags) & OFlag::O_ACCMODE == OFlag::O_RDWR {
            return Ok(());
        }
        Err(self.wrong("not open for reading and writing", "a descriptor open for both"))
    }

    fn memfd(&self, page_size: u64) -> Result<(), FdError> {
        let fs = fstatfs(self.file).map_err(self.io("looking at its file system"))?;
        let (magic, what) = match self.state.kind {
            RamKind::Hugetlb => (HUGETLBFS_MAGIC, "a file of huge pages"),
            _ => (TMPFS_MAGIC, "a shared-memory file"),
        };
        self.regular()?;
        if fs.filesystem_type() != magic {
            return Err(self.wrong("a file of another kind", what));
        }
        if magic == HUGETLBFS_MAGIC && fs.block_size() as u64 != page_size {
            return Err(self.wrong(
                format!("made of pages of {}", ByteSize(fs.block_size() as u64)),
                ByteSize(page_size).to_string(),
            ));
        }
        self.length(self.state.size)?;
        let seals = fcntl(self.file, FcntlArg::F_GET_SEALS).map_err(self.io("reading its seals"))? as u32;
        let writes = (SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_FUTURE_WRITE).bits() as u32;
        let fixed = (RAM_SEALS & !SealFlag::F_SEAL_SEAL).bits() as u32;
        if seals & writes != 0 || seals & fixed != fixed || seals != self.state.seals {
            return Err(self.wrong(
                format!("sealed {seals:#x}"),
                format!("{:#x}, against shrinking and growing and not against writing", self.state.seals),
            ));
        }
        Ok(())
    }

    fn file(&self) -> Result<Place, FdError> {
        self.regular()?;
        let page_size = page_size_of(self.file).map_err(self.io("looking at its file system"))?;
        if page_size != self.state.page_size {
            return Err(self.wrong(
                format!("on a file system with pages of {}", ByteSize(page_size)),
                ByteSize(self.state.page_size).to_string(),
            ));
        }
        self.length(self.state.size + page_size)?;
        self.locked(&Extent::All)?;
        Ok(Place::all(Some(self.state.size)))
    }

    fn dax(&self, offset: Option<u64>) -> Result<Place, FdError> {
        let geometry = dax::geometry(self.file)
            .map_err(self.io("reading the size of the DAX device"))?
            .ok_or_else(|| self.wrong("no DAX device", "a DAX device"))?;
        if geometry.align != self.state.page_size {
            return Err(self.wrong(
                format!("in units of {}", ByteSize(geometry.align)),
                ByteSize(self.state.page_size).to_string(),
            ));
        }
        let place = geometry.place(self.state.size, offset);
        let place = place.map_err(|(found, expected)| self.wrong(found, expected))?;
        self.locked(&place.extent)?;
        Ok(place)
    }

    fn regular(&self) -> Result<(), FdError> {
        let meta = self.file.metadata().map_err(self.io("looking at it"))?;
        if meta.is_file() { Ok(()) } else { Err(self.wrong("no regular file", "a file that holds RAM")) }
    }

    fn length(&self, expected: u64) -> Result<(), FdError> {
        let found = self.file.metadata().map_err(self.io("reading its size"))?.len();
        if found == expected {
            return Ok(());
        }
        Err(self.wrong(format!("{found} bytes long"), format!("{expected} bytes")))
    }

    /// The lock came with the descriptor; where it did not, somebody else may be on this RAM.
    fn locked(&self, extent: &Extent) -> Result<(), FdError> {
        if lock::acquire(self.file, extent).map_err(self.io("locking it"))? {
            return Ok(());
        }
        Err(self.wrong("locked by another guest", "RAM that comes with its lock"))
    }
}
