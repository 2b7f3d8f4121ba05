//! An address space by IOMMUFD: devices come one by one, RAM by its file.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use iommufd_bindings::iommufd::{
    iommu_ioas_map, iommu_ioas_map_file, iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA as FIXED,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE as READABLE,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE as WRITEABLE,
};
use vm_memory::GuestMemoryMmap;

use super::ioctls;
use super::limits::{TWICE, WAY_OUT};
use super::space::{Range, Space, ranges, unmapped};
use crate::cpr::fds::{FdName, FdTable};
use crate::devices::{DeviceError, given};

const ID: &str = "vfio-iommufd";
/// Where they come from.
const NODE: &str = "/dev/iommu";

/// An IOMMUFD with one address space.
pub(super) struct Iommufd {
    iommufd: OwnedFd,
    /// The address space; none where it was made by another process, which has told all there is to tell.
    ioas: Option<u32>,
    /// Some RAM is mapped by its address in the process that booted the guest.
    by_address: AtomicBool,
    /// Why the kernel cannot give the mappings to another process, once it is known.
    fixed: OnceLock<Option<nix::Error>>,
}

fn name() -> FdName {
    FdName::new("vfio.iommufd", 0)
}

impl Iommufd {
    /// Whether the host has it.
    pub(super) fn is_there() -> bool {
        Path::new(NODE).exists()
    }

    /// A new one.
    pub(super) fn open() -> Result<Self, DeviceError> {
        let opened = OpenOptions::new().read(true).write(true).open(NODE);
        let doing = format!("opening {NODE} (the kernel's module iommufd has it)");
        Self::new(opened.map_err(DeviceError::io(ID, doing))?.into())
    }

    /// One that a manager opened.
    pub(super) fn given(number: RawFd) -> Result<Self, DeviceError> {
        let copy = given::duplicate(number);
        let made = Self::new(copy.map_err(DeviceError::io(ID, format!("taking descriptor {number}")))?)?;
        // SAFETY: it was seen to be an IOMMUFD that was given to this process; nothing else in it has it.
        unsafe { given::close(number) };
        Ok(made)
    }

    fn new(iommufd: OwnedFd) -> Result<Self, DeviceError> {
        let ioas = ioctls::alloc_ioas(iommufd.as_fd());
        let ioas = ioas.map_err(DeviceError::io(ID, "making an address space for devices"))?;
        Ok(Self { ioas: Some(ioas), ..Self::of(iommufd) })
    }

    /// One that was handed over, or none.
    pub(super) fn adopt(fds: &mut FdTable) -> Option<Self> {
        let iommufd = fds.take_optional(&name())?;
        Some(Self::of(iommufd))
    }

    fn of(iommufd: OwnedFd) -> Self {
        Self { iommufd, ioas: None, by_address: AtomicBool::new(false), fixed: OnceLock::new() }
    }

    /// Takes a device in that was just opened.
    pub(super) fn add(&self, device: BorrowedFd<'_>) -> nix::Result<()> {
        ioctls::bind(device, self.iommufd.as_fd())?;
        ioctls::attach(device, self.ioas.unwrap_or_default())
    }

    fn map_range(&self, range: &Range<'_>, ioas_id: u32) -> nix::Result<()> {
        let flags = FIXED | READABLE | WRITEABLE;
        let (iova, length, iommufd) = (range.guest, range.size, self.iommufd.as_fd());
        if let Some((file, start)) = range.file {
            let mapping =
                iommu_ioas_map_file { size: 0, flags, ioas_id, fd: file.as_raw_fd(), start, length, iova };
            // SAFETY: the file is the guest's RAM, which nobody here takes to stay as it is.
            match unsafe { ioctls::map_file(iommufd, mapping) } {
                // A kernel without the call, or a file that is no memfd.
                Err(nix::Error::ENOTTY | nix::Error::EINVAL | nix::Error::EBADFD) => {}
                other => return other,
            }
        }
        self.by_address.store(true, SeqCst);
        let mapping =
            iommu_ioas_map { flags, ioas_id, user_va: range.host, length, iova, ..Default::default() };
        // SAFETY: as above.
        unsafe { ioctls::map_address(iommufd, mapping) }
    }
}

impl Space for Iommufd {
    fn id(&self) -> &'static str {
        ID
    }

    fn map(&self, memory: &GuestMemoryMmap) -> Result<(), DeviceError> {
        let ioas = self.ioas.unwrap_or_default();
        ranges(memory).try_for_each(|range| self.map_range(&range, ioas).map_err(unmapped(ID, &range)))?;
        // Doing it changes nothing now: the mappings are this process's. Later it would take them from whoever has them.
        self.fixed.get_or_init(|| ioctls::change_process(self.iommufd.as_fd()).err());
        Ok(())
    }

    fn take(&self, _memory: &GuestMemoryMmap) -> Result<(), DeviceError> {
        ioctls::change_process(self.iommufd.as_fd()).map_err(|error| {
            let doing = "taking over the mappings of devices (IOMMU_IOAS_CHANGE_PROCESS)";
            let doing = match error {
                nix::Error::ENOMEM => format!("{doing}; all RAM is pinned, and {TWICE}: {WAY_OUT}"),
                _ => doing.to_owned(),
            };
            DeviceError::io::<std::io::Error>(ID, doing)(error.into())
        })
    }

    /// The count is the user's, and goes up for the new process before it goes down for the old one.
    fn counts_at_change(&self) -> u64 {
        2
    }

    fn register(&self, fds: &mut FdTable) -> Result<(), DeviceError> {
        Ok(fds.insert_dup(name(), self.iommufd.as_fd())?)
    }

    fn blocker(&self) -> Option<String> {
        if self.by_address.load(SeqCst) {
            return Some(
                "RAM is mapped for devices by its address in this process, as this kernel or what the RAM is made of does \
                 not let it be mapped by its file: give the guest RAM in a memfd (Linux 6.14 or newer), or iommufd=off"
                    .into(),
            );
        }
        let error = self.fixed.get().copied().flatten()?;
        Some(format!(
            "this kernel cannot give mappings to another process (IOMMU_IOAS_CHANGE_PROCESS): {error}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use memfd::MemfdOptions;
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule,
    };
    use vm_memory::{FileOffset, GuestAddress};

    use super::*;

    const RAM: usize = 4 << 20;

    fn memory(file: Option<FileOffset>) -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), RAM, file)]).unwrap()
    }

    fn in_memfd() -> GuestMemoryMmap {
        let memfd = MemfdOptions::new().create("ram").unwrap();
        memfd.as_file().set_len(RAM as u64).unwrap();
        memory(Some(FileOffset::new(memfd.into_file(), 0)))
    }

    /// What stands in the way of a handover of a guest with such RAM.
    fn blocker(memory: &GuestMemoryMmap) -> Option<String> {
        let iommufd = Iommufd::open().unwrap();
        iommufd.map(memory).unwrap();
        iommufd.blocker()
    }

    /// Has the kernel answer one call as one does that has never heard of it.
    fn forget(request: u64) {
        let is_it = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, request).unwrap();
        let rules = [(libc::SYS_ioctl, vec![SeccompRule::new(vec![is_it]).unwrap()])];
        let unknown = SeccompAction::Errno(libc::ENOTTY as u32);
        let arch = std::env::consts::ARCH.try_into().unwrap();
        let filter =
            SeccompFilter::new(rules.into_iter().collect(), SeccompAction::Allow, unknown, arch).unwrap();
        seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
    }

    #[test]
    #[ignore = "needs /dev/iommu: scripts/lab vfio-mediated-2 runs it"]
    fn ram_in_a_memfd_can_change_hands_and_ram_without_a_file_cannot() {
        assert_eq!(blocker(&in_memfd()), None);
        assert!(blocker(&memory(None)).unwrap().contains("by its address in this process"));
    }

    #[test]
    #[ignore = "needs /dev/iommu: scripts/lab vfio-mediated-2 runs it"]
    fn a_kernel_that_cannot_change_the_process_or_map_a_file_is_told_of() {
        let without = |request: u8| {
            let asked = thread::spawn(move || {
                forget(nix::request_code_none!(b';', request));
                blocker(&in_memfd()).unwrap()
            });
            asked.join().unwrap()
        };
        assert!(without(0x92).contains("IOMMU_IOAS_CHANGE_PROCESS"));
        assert!(without(0x8f).contains("Linux 6.14"));
    }
}
