//! An address space by a type 1 container: devices come in groups, RAM by its address in a process.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, OwnedFd};

use vfio_bindings::bindings::vfio::{
    VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_VADDR, VFIO_DMA_MAP_FLAG_WRITE, VFIO_DMA_UNMAP_FLAG_VADDR,
    VFIO_TYPE1v2_IOMMU, VFIO_UPDATE_VADDR,
};
use vm_memory::GuestMemoryMmap;

use super::ioctls::{self, DmaMap};
use super::space::{Range, Space, ranges, unmapped};
use crate::cpr::fds::{FdName, FdTable};
use crate::devices::DeviceError;

const ID: &str = "vfio-type1";
/// The version of the interface that there is.
const API_VERSION: i32 = 0;
/// Where containers come from.
const NODE: &str = "/dev/vfio/vfio";

/// A container.
pub(super) struct Type1 {
    container: OwnedFd,
}

fn name() -> FdName {
    FdName::new("vfio.container", 0)
}

impl Type1 {
    /// A new one, without a group.
    pub(super) fn open() -> Result<Self, DeviceError> {
        let opened = OpenOptions::new().read(true).write(true).open(NODE);
        let doing = format!("opening {NODE} (the kernel's module vfio has it)");
        Self::checked(opened.map_err(DeviceError::io(ID, doing))?.into())
    }

    /// One that was handed over, or none.
    pub(super) fn adopt(fds: &mut FdTable) -> Result<Option<Self>, DeviceError> {
        fds.take_optional(&name()).map(Self::checked).transpose()
    }

    fn checked(container: OwnedFd) -> Result<Self, DeviceError> {
        let version = ioctls::api_version(container.as_fd());
        match version.map_err(DeviceError::io(ID, "asking a container for its version"))? {
            API_VERSION => Ok(Self { container }),
            other => {
                let found = format!("version {other} of the container interface");
                Err(DeviceError::unfit(ID)((found, API_VERSION.to_string())))
            }
        }
    }

    /// Takes a group in; the first decides how it maps.
    pub(super) fn add(&self, group: &OwnedFd, first: bool) -> nix::Result<()> {
        ioctls::set_container(group.as_fd(), self.container.as_fd())?;
        if first { ioctls::set_iommu(self.container.as_fd(), VFIO_TYPE1v2_IOMMU) } else { Ok(()) }
    }

    /// Tells the kernel about a range.
    fn tell(&self, range: &Range<'_>, flags: u32) -> nix::Result<()> {
        let mapping = DmaMap { argsz: 0, flags, vaddr: range.host, iova: range.guest, size: range.size };
        // SAFETY: the range is the guest's RAM, which nobody here takes to stay as it is.
        unsafe { ioctls::map(self.container.as_fd(), mapping) }
    }
}

impl Space for Type1 {
    fn id(&self) -> &'static str {
        ID
    }

    fn map(&self, memory: &GuestMemoryMmap) -> Result<(), DeviceError> {
        ranges(memory).try_for_each(|range| {
            self.tell(&range, VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE).map_err(unmapped(ID, &range))
        })
    }

    /// Range by range: its address is made invalid, unless somebody has done so, and then this process's is told.
    fn take(&self, memory: &GuestMemoryMmap) -> Result<(), DeviceError> {
        ranges(memory).try_for_each(|range| {
            let container = self.container.as_fd();
            let forgot =
                ioctls::forget_address(container, VFIO_DMA_UNMAP_FLAG_VADDR, range.guest, range.size);
            match forgot {
                Ok(()) | Err(nix::Error::EINVAL) => {}
                Err(error) => return Err(unmapped(ID, &range)(error)),
            }
            self.tell(&range, VFIO_DMA_MAP_FLAG_VADDR).map_err(unmapped(ID, &range))
        })
    }

    /// Each process has its own count.
    fn counts_at_change(&self) -> u64 {
        1
    }

    fn register(&self, fds: &mut FdTable) -> Result<(), DeviceError> {
        Ok(fds.insert_dup(name(), self.container.as_fd())?)
    }

    fn blocker(&self) -> Option<String> {
        let can = ioctls::has_extension(self.container.as_fd(), VFIO_UPDATE_VADDR);
        (!can).then(|| {
            "this kernel cannot give the mappings of a type 1 container to another process (VFIO_UPDATE_VADDR: \
             Linux 6.2 or newer, and no mediated device): assign the device with iommufd=on"
                .to_owned()
        })
    }
}
