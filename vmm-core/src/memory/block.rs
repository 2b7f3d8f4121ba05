//! A RAM block: how it comes to be, travels and comes back.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{FallocateFlags, fallocate};

use super::check::{self, is_in_memory, page_size_of};
#[cfg(test)]
use super::dax;
use super::lock::{self, Extent};
use super::open::{self, PAGE_SIZE, RAM_SEALS};
use super::{MemoryError, RamBlockState, RamFate, RamKind, StampLocation};
use crate::config::{Backing, ByteSize, MemoryConfig};
use crate::cpr::Mode;
use crate::cpr::blockers::Blocker;
use crate::cpr::fds::{FdError, FdName, FdTable};

/// The name of the machine's RAM.
pub const RAM: &str = "pc.ram";
/// The name of the firmware ROM.
pub const ROM: &str = "pc.rom";

/// The largest firmware image: it ends at 4 GiB and must stay above the interrupt chips' registers.
const MAX_ROM: u64 = 16 << 20;

/// A RAM block: one descriptor, and what is known about it.
#[derive(Debug)]
pub struct RamBlock {
    pub(super) name: String,
    pub(super) file: Arc<File>,
    pub(super) kind: RamKind,
    pub(super) size: u64,
    pub(super) page_size: u64,
    pub(super) seals: u32,
    pub(super) path: Option<PathBuf>,
    pub(super) place: Place,
}

/// Where a block is in its backing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Where the RAM begins.
    pub(super) ram: u64,
    /// Where its stamp lies, if there is one.
    pub(super) stamp: Option<u64>,
    /// What of the backing is locked, if it has a path.
    pub(super) extent: Extent,
    /// Where the last whole unit of a DAX device is.
    pub(super) last: Option<u64>,
}

impl Place {
    /// All of the backing, with a stamp there.
    pub(super) fn all(stamp: Option<u64>) -> Self {
        Self { ram: 0, stamp, extent: Extent::All, last: None }
    }
}

impl RamBlock {
    /// Makes RAM for a cold boot. What has a path is locked; its stamp is for [`clear_stamp`](Self::clear_stamp) to clear.
    pub fn create(name: &str, config: &MemoryConfig) -> Result<Self, MemoryError> {
        match &config.backing {
            Backing::Memfd | Backing::Hugetlb { .. } => Self::anonymous(name, config),
            Backing::File { .. } | Backing::Dax { .. } => Self::open(name, config, true),
        }
    }

    /// Makes a ROM that holds `image`, at its end where the image is no whole number of pages.
    pub fn create_rom(name: &str, image: &[u8]) -> Result<Self, MemoryError> {
        if image.is_empty() || image.len() as u64 > MAX_ROM {
            return Err(MemoryError::Layout {
                block: name.into(),
                found: format!("an image of {} bytes", image.len()),
                expected: format!("1 byte to {}", ByteSize(MAX_ROM)),
            });
        }
        let size = (image.len() as u64).next_multiple_of(PAGE_SIZE);
        let mut padded = vec![0; size as usize - image.len()];
        padded.extend_from_slice(image);
        let file = open::memfd(name, size, None, &padded)?;
        Ok(Self {
            name: name.into(),
            file: Arc::new(file),
            kind: RamKind::Rom,
            size,
            page_size: PAGE_SIZE,
            seals: RAM_SEALS.bits() as u32,
            path: None,
            place: Place::all(None),
        })
    }

    /// Takes over a received descriptor after checking that it is what `state` says, and has it where the configuration says.
    pub fn adopt(
        name: &str,
        fd: OwnedFd,
        config: &MemoryConfig,
        state: &RamBlockState,
    ) -> Result<Self, FdError> {
        check::adopt(name, fd, config.backing.offset(), state)
    }

    /// Opens again what outlived its process (`cpr-reboot`): the path is the configuration's, the rest must be as
    /// `state` says. A ROM is made from the image in `state`. Whether the RAM holds what was saved is for the stamp
    /// to tell.
    pub fn reopen(config: &MemoryConfig, state: &RamBlockState) -> Result<Self, MemoryError> {
        if let Some(rom) = Self::rom_of(config, state)? {
            return Ok(rom);
        }
        if config.backing.path().is_none() {
            return Err(differs(
                state,
                "RAM to be reopened",
                "backing=file or backing=dax: other RAM did not outlive its process".into(),
            ));
        }
        let block = Self::open(&state.name, config, false)?;
        if block.page_size != state.page_size {
            let found = format!("pages of {}", ByteSize(state.page_size));
            return Err(differs(state, &found, ByteSize(block.page_size).to_string()));
        }
        Ok(block)
    }

    /// Makes RAM for what was copied out of it, as the configuration has it; what is in it is for [`empty`](Self::empty) to take
    /// out. On `trial`, RAM that would have a path is in memory: nothing outlives the process.
    pub fn renew(config: &MemoryConfig, state: &RamBlockState, trial: bool) -> Result<Self, MemoryError> {
        if let Some(rom) = Self::rom_of(config, state)? {
            return Ok(rom);
        }
        let name = state.name.as_str();
        match &config.backing {
            Backing::Dax { .. } => {
                let expected = "RAM that can be emptied: no DAX device".into();
                Err(differs(state, "RAM that was copied", expected))
            }
            Backing::File { .. } if !trial => Self::open(name, config, true),
            Backing::File { .. } => {
                Self::anonymous(name, &MemoryConfig { backing: Backing::Memfd, ..config.clone() })
            }
            Backing::Memfd | Backing::Hugetlb { .. } => Self::anonymous(name, config),
        }
    }

    /// A ROM, made from its image in `state`; none for RAM, which must have the configuration's size.
    pub(crate) fn rom_of(config: &MemoryConfig, state: &RamBlockState) -> Result<Option<Self>, MemoryError> {
        if state.kind == RamKind::Rom {
            return Self::create_rom(&state.name, &state.image).map(Some);
        }
        if config.size.0 != state.size {
            return Err(differs(state, &ByteSize(state.size).to_string(), config.size.to_string()));
        }
        Ok(None)
    }

    /// No state file goes with what is in this RAM, from now on.
    pub fn clear_stamp(&self) -> Result<(), MemoryError> {
        let Some(stamp) = self.stamp_location() else { return Ok(()) };
        let cleared = stamp.write(&[0; PAGE_SIZE as usize]);
        cleared.map_err(MemoryError::io(&self.name, "clearing the stamp beside the RAM"))
    }

    /// Takes out what is in a file of RAM, and its stamp.
    pub fn empty(&self) -> Result<(), MemoryError> {
        self.clear_stamp()?;
        let all = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&*self.file, all, 0, self.size as i64)
            .map_err(MemoryError::io(&self.name, "emptying the RAM's file"))?;
        if self.page_size > PAGE_SIZE {
            // What was punched out lost its reservation.
            open::reserve_huge_pages(&self.name, &self.file, self.size + self.page_size, self.page_size)?;
        }
        Ok(())
    }

    fn anonymous(name: &str, config: &MemoryConfig) -> Result<Self, MemoryError> {
        let (kind, huge) = match config.backing {
            Backing::Hugetlb { page_size } => (RamKind::Hugetlb, Some(page_size)),
            _ => (RamKind::Memfd, None),
        };
        let size = config.size.0;
        let page_size = huge.map_or(PAGE_SIZE, crate::config::HugePageSize::bytes);
        let file = Arc::new(open::memfd(name, size, huge, &[])?);
        if huge.is_some() {
            open::reserve_huge_pages(name, &file, size, page_size)?;
        }
        Ok(Self {
            name: name.into(),
            file,
            kind,
            size,
            page_size,
            seals: RAM_SEALS.bits() as u32,
            path: None,
            place: Place::all(None),
        })
    }

    fn open(name: &str, config: &MemoryConfig, create: bool) -> Result<Self, MemoryError> {
        let size = config.size.0;
        let path = config.backing.path().cloned().unwrap_or_default();
        let (file, kind, page_size, place) = if let Backing::Dax { .. } = config.backing {
            let (file, align, place) = open::dax(name, &path, size, config.backing.offset())?;
            (file, RamKind::Dax, align, place)
        } else {
            let file = open::file(name, &path, create)?;
            let page_size = page_size_of(&file).map_err(MemoryError::io(
                name,
                format!("looking at the file system of {}", path.display()),
            ))?;
            (file, RamKind::File, page_size, Place::all(Some(size)))
        };
        let block = Self {
            name: name.into(),
            file: Arc::new(file),
            kind,
            size,
            page_size,
            seals: 0,
            path: Some(path),
            place,
        };
        // The lock first: a file in use must not be touched.
        block.acquire_lock()?;
        if kind == RamKind::File {
            block.fit_file(create)?;
        }
        Ok(block)
    }

    /// Sizes a new file; refuses an existing one of another size.
    fn fit_file(&self, create: bool) -> Result<(), MemoryError> {
        let path = self.path.clone().unwrap_or_default();
        if !self.size.is_multiple_of(self.page_size) {
            return Err(MemoryError::Layout {
                block: self.name.clone(),
                found: ByteSize(self.size).to_string(),
                expected: format!("a multiple of the file system's page, {}", ByteSize(self.page_size)),
            });
        }
        let expected = self.size + self.page_size;
        let found = self
            .file
            .metadata()
            .map_err(MemoryError::io(&self.name, format!("reading the size of {}", path.display())))?
            .len();
        if found == 0 && create {
            self.file.set_len(expected).map_err(MemoryError::io(
                &self.name,
                format!("sizing {} to {expected} bytes", path.display()),
            ))?;
        } else if found != expected {
            return Err(MemoryError::Backing {
                block: self.name.clone(),
                path,
                found: format!("{found} bytes long"),
                expected: format!(
                    "{expected} ({} of RAM and a page for the stamp); remove the file to have it made",
                    ByteSize(self.size)
                ),
            });
        }
        if self.page_size > PAGE_SIZE {
            open::reserve_huge_pages(&self.name, &self.file, expected, self.page_size)?;
        }
        Ok(())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of RAM; the stamp is not counted.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of a page of its backing.
    pub fn page_size(&self) -> u64 {
        self.page_size
    }

    /// What it is made of.
    pub fn kind(&self) -> RamKind {
        self.kind
    }

    /// Where it begins in its backing.
    pub fn offset(&self) -> u64 {
        self.place.ram
    }

    /// What of its backing is this block's, the stamp included.
    pub fn extent(&self) -> &Extent {
        &self.place.extent
    }

    /// The last unit of the DAX device that it is in, if it is: where the stamp is of a guest that has all of it, or who has which
    /// part.
    pub fn last_unit(&self) -> Option<StampLocation> {
        self.place.last.map(|offset| self.location(offset))
    }

    /// Where it was opened, if it has a path.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The backing.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// What the other side must know. A ROM's image goes along where its descriptor does not.
    pub fn state(&self, mode: Mode) -> Result<RamBlockState, MemoryError> {
        let mut image = Vec::new();
        if self.kind == RamKind::Rom && mode == Mode::CprReboot {
            image.resize(self.size as usize, 0);
            self.file.read_exact_at(&mut image, 0).map_err(MemoryError::io(&self.name, "reading the ROM"))?;
        }
        Ok(RamBlockState {
            name: self.name.clone(),
            kind: self.kind,
            size: self.size,
            page_size: self.page_size,
            seals: self.seals,
            path: self.path.clone(),
            image,
        })
    }

    /// Registers a duplicate of the descriptor under the block's name.
    pub fn register(&self, fds: &mut FdTable) -> Result<(), FdError> {
        fds.insert_dup(FdName::new(&self.name, 0), self.file.as_fd())
    }

    /// Where the stamp goes; none where the RAM dies with its last descriptor.
    pub fn stamp_location(&self) -> Option<StampLocation> {
        self.place.stamp.map(|offset| self.location(offset))
    }

    fn location(&self, offset: u64) -> StampLocation {
        StampLocation { file: self.file.clone(), offset, granularity: self.page_size }
    }

    /// Locks what of the backing is this guest's, if it has a path. Duplicates of the descriptor share the lock.
    pub fn acquire_lock(&self) -> Result<(), MemoryError> {
        let Some(path) = &self.path else { return Ok(()) };
        let failed = || MemoryError::io(&self.name, format!("locking {}", path.display()));
        let extent = &self.place.extent;
        if lock::acquire(&self.file, extent).map_err(failed())? {
            return Ok(());
        }
        // It may have been let go of meanwhile.
        let holder = lock::held(&self.file, extent).map_err(failed())?;
        Err(MemoryError::InUse {
            block: self.name.clone(),
            path: path.clone(),
            wanted: extent.clone(),
            held: holder.unwrap_or_else(|| extent.clone()),
        })
    }

    /// Lets another process boot or load on the backing (`cpr-reboot`, after the state is on disk).
    pub fn release_lock(&self) -> Result<(), MemoryError> {
        let Some(path) = &self.path else { return Ok(()) };
        lock::release(&self.file, &self.place.extent)
            .map_err(MemoryError::io(&self.name, format!("unlocking {}", path.display())))
    }

    /// What of a memfd the kernel would preserve, and not give back as it was.
    fn spoilt_by_a_live_update(&self) -> Option<Blocker> {
        // Linux 7.2 keeps a pointer for each page in one allocation, and gives an executable file back, to which it adds the seals.
        const LESS_THAN: u64 = 1 << 40;
        let why = if self.size >= LESS_THAN {
            format!("a live update preserves less than {} in one memfd", ByteSize(LESS_THAN))
        } else if self.seals & libc::F_SEAL_EXEC as u32 != 0 {
            "its memfd is sealed against execution (vm.memfd_noexec), and would come back read-only"
                .to_owned()
        } else {
            return None;
        };
        Some(Blocker::new(&self.name, why))
    }

    /// What stands in the way of a handover in this mode.
    pub fn survives(&self, mode: Mode, fate: RamFate) -> Option<Blocker> {
        if mode != Mode::CprReboot {
            return None;
        }
        let what = match (fate, self.kind) {
            (RamFate::Stays, RamKind::Memfd) => "a memfd",
            (RamFate::Stays, RamKind::Hugetlb) => "a hugetlb memfd",
            (RamFate::Preserved, RamKind::Memfd) => return self.spoilt_by_a_live_update(),
            (RamFate::Preserved, RamKind::Hugetlb | RamKind::File | RamKind::Dax) => {
                let why = "a live update preserves RAM in a memfd of ordinary pages, and no other: boot the guest with backing=memfd, or \
                           save it to a file";
                return Some(Blocker::new(&self.name, why));
            }
            (RamFate::Copied, RamKind::Dax) => {
                let why = "RAM in a DAX device is not copied, for it outlives a kexec: leave out --copy-ram";
                return Some(Blocker::new(&self.name, why));
            }
            _ => return None,
        };
        Some(Blocker::new(
            &self.name,
            format!(
                "RAM in {what} ends with its process; --copy-ram takes it along in the state file; --to luo: has the kernel keep \
                 it where that can (backing=memfd); backing=file on /dev/shm outlives the process, backing=dax a kexec too"
            ),
        ))
    }

    /// What stands in the way of RAM that stays where it is over a kexec, if it may stay over a reboot.
    pub fn outlives_kexec(&self) -> Option<Blocker> {
        // What a device's node is on says nothing of the device.
        let path = self.path.as_ref().filter(|_| self.kind == RamKind::File && is_in_memory(&self.file))?;
        Some(Blocker::new(
            &self.name,
            format!(
                "RAM in {}, which is in memory, ends with the host's kernel; --copy-ram takes it along in the state file; \
                 backing=dax outlives a kexec, backing=file does on a disk or a DAX file system, and backing=memfd with --to luo:",
                path.display()
            ),
        ))
    }
}

#[cfg(test)]
impl RamBlock {
    /// RAM in a file that stands in for a DAX device with units of 2 MiB: what is not to be had by opening one.
    pub(crate) fn in_stand_in(path: &Path, size: u64, offset: Option<u64>) -> Result<Self, MemoryError> {
        let file = open::file(RAM, path, false)?;
        let align = 2 << 20;
        let place = dax::Geometry { size: file.metadata().unwrap().len(), align }.place(size, offset);
        let block = Self {
            name: RAM.into(),
            file: Arc::new(file),
            kind: RamKind::Dax,
            size,
            page_size: align,
            seals: 0,
            path: Some(path.into()),
            place: place.unwrap(),
        };
        block.acquire_lock().map(|()| block)
    }
}

/// The error of a configuration that is not what the saved state says.
fn differs(state: &RamBlockState, found: &str, expected: String) -> MemoryError {
    MemoryError::Layout { block: state.name.clone(), found: format!("the saved state has {found}"), expected }
}

#[cfg(test)]
#[path = "block_tests.rs"]
mod tests;
