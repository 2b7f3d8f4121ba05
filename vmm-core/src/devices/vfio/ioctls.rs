//! The system calls of VFIO and IOMMUFD (the kernel's `include/uapi/linux/vfio.h` and `iommufd.h`).
//!
//! Each call takes a structure that it reads or writes while it lasts, and that says how long it is. Addresses of this
//! process's memory are told to the kernel by [`map`] and [`map_file`] only: see there.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use iommufd_bindings::iommufd::{
    iommu_ioas_alloc, iommu_ioas_change_process, iommu_ioas_map, iommu_ioas_map_file,
};
use nix::Result;
use vfio_bindings::bindings::vfio::{
    VFIO_GROUP_FLAGS_VIABLE, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK,
    VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, vfio_device_attach_iommufd_pt,
    vfio_device_bind_iommufd, vfio_device_info, vfio_group_status, vfio_iommu_type1_dma_map,
    vfio_iommu_type1_dma_unmap, vfio_irq_info, vfio_region_info,
};

mod raw {
    use std::ffi::{c_char, c_int};

    use super::{
        iommu_ioas_alloc, iommu_ioas_change_process, iommu_ioas_map, iommu_ioas_map_file,
        vfio_device_attach_iommufd_pt, vfio_device_bind_iommufd, vfio_device_info, vfio_group_status,
        vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap, vfio_irq_info,
    };

    /// Both interfaces have numbers without sizes.
    const fn number(of: u8) -> nix::sys::ioctl::ioctl_num_type {
        nix::request_code_none!(b';', of)
    }

    nix::ioctl_none_bad!(get_api_version, number(100));
    nix::ioctl_write_int_bad!(check_extension, number(101));
    nix::ioctl_write_int_bad!(set_iommu, number(102));
    nix::ioctl_readwrite_bad!(group_get_status, number(103), vfio_group_status);
    nix::ioctl_write_ptr_bad!(group_set_container, number(104), c_int);
    nix::ioctl_write_ptr_bad!(group_get_device_fd, number(106), c_char);
    nix::ioctl_readwrite_bad!(device_get_info, number(107), vfio_device_info);
    nix::ioctl_readwrite_bad!(device_get_region_info, number(108), u64);
    nix::ioctl_readwrite_bad!(device_get_irq_info, number(109), vfio_irq_info);
    nix::ioctl_write_ptr_bad!(device_set_irqs, number(110), u32);
    nix::ioctl_none_bad!(device_reset, number(111));
    nix::ioctl_write_ptr_bad!(map_dma, number(113), vfio_iommu_type1_dma_map);
    nix::ioctl_readwrite_bad!(unmap_dma, number(114), vfio_iommu_type1_dma_unmap);
    nix::ioctl_readwrite_bad!(bind_iommufd, number(118), vfio_device_bind_iommufd);
    nix::ioctl_readwrite_bad!(attach_iommufd_pt, number(119), vfio_device_attach_iommufd_pt);

    nix::ioctl_readwrite_bad!(ioas_alloc, number(0x81), iommu_ioas_alloc);
    nix::ioctl_readwrite_bad!(ioas_map, number(0x85), iommu_ioas_map);
    nix::ioctl_readwrite_bad!(ioas_map_file, number(0x8f), iommu_ioas_map_file);
    nix::ioctl_readwrite_bad!(ioas_change_process, number(0x92), iommu_ioas_change_process);
}

fn size<T>() -> u32 {
    size_of::<T>() as u32
}

/// The version of the container interface.
pub(super) fn api_version(container: BorrowedFd<'_>) -> Result<i32> {
    // SAFETY: the descriptor is open; the call takes nothing else.
    unsafe { raw::get_api_version(container.as_raw_fd()) }
}

/// Whether a container can do something.
pub(super) fn has_extension(container: BorrowedFd<'_>, extension: u32) -> bool {
    // SAFETY: the descriptor is open; the call takes a number.
    unsafe { raw::check_extension(container.as_raw_fd(), extension as i32) }.is_ok_and(|there| there > 0)
}

/// Chooses how a container maps. It has a group already.
pub(super) fn set_iommu(container: BorrowedFd<'_>, kind: u32) -> Result<()> {
    // SAFETY: the descriptor is open; the call takes a number.
    unsafe { raw::set_iommu(container.as_raw_fd(), kind as i32) }.map(drop)
}

/// Whether all devices of a group are the host's no more.
pub(super) fn is_viable(group: BorrowedFd<'_>) -> Result<bool> {
    let mut status = vfio_group_status { argsz: size::<vfio_group_status>(), flags: 0 };
    // SAFETY: the descriptor is open; the structure outlives the call.
    unsafe { raw::group_get_status(group.as_raw_fd(), &raw mut status) }?;
    Ok(status.flags & VFIO_GROUP_FLAGS_VIABLE != 0)
}

/// Puts a group in a container.
pub(super) fn set_container(group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> Result<()> {
    let container = container.as_raw_fd();
    // SAFETY: both descriptors are open; the number outlives the call, which reads it.
    unsafe { raw::group_set_container(group.as_raw_fd(), &raw const container) }.map(drop)
}

/// Opens a device of a group. The first to do so has it reset.
pub(super) fn device_of(group: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    // SAFETY: the descriptor is open; the name outlives the call, which reads it.
    let fd = unsafe { raw::group_get_device_fd(group.as_raw_fd(), name.as_ptr()) }?;
    // SAFETY: the call has made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What a device is.
pub(super) fn device_info(device: BorrowedFd<'_>) -> Result<vfio_device_info> {
    let mut info = vfio_device_info { argsz: size::<vfio_device_info>(), ..Default::default() };
    // SAFETY: the descriptor is open; the structure outlives the call, which writes no more than it is told there is.
    unsafe { raw::device_get_info(device.as_raw_fd(), &raw mut info) }?;
    Ok(info)
}

/// A region of a device, with what follows the structure: the capabilities, at offsets from its beginning.
pub(super) fn region_info(device: BorrowedFd<'_>, index: u32) -> Result<(vfio_region_info, Vec<u8>)> {
    let mut length = size_of::<vfio_region_info>();
    loop {
        let mut buffer = vec![0_u64; length.div_ceil(8)];
        buffer[0] = length as u64;
        buffer[1] = index.into();
        // SAFETY: the descriptor is open; the buffer outlives the call, which writes no more than the length at its head.
        unsafe { raw::device_get_region_info(device.as_raw_fd(), buffer.as_mut_ptr()) }?;
        let bytes: Vec<u8> = buffer.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let (low, high) = (|word: u64| word as u32, |word: u64| (word >> 32) as u32);
        let info = vfio_region_info {
            argsz: low(buffer[0]),
            flags: high(buffer[0]),
            index: low(buffer[1]),
            cap_offset: high(buffer[1]),
            size: buffer[2],
            offset: buffer[3],
        };
        let whole = info.argsz as usize;
        if whole <= length || whole > 1 << 16 {
            return Ok((info, bytes));
        }
        length = whole;
    }
}

/// What interrupts of one kind a device has.
pub(super) fn irq_info(device: BorrowedFd<'_>, index: u32) -> Result<vfio_irq_info> {
    let mut info = vfio_irq_info { argsz: size::<vfio_irq_info>(), index, ..Default::default() };
    // SAFETY: the descriptor is open; the structure outlives the call.
    unsafe { raw::device_get_irq_info(device.as_raw_fd(), &raw mut info) }?;
    Ok(info)
}

/// What is done about interrupts.
#[derive(Debug, Clone, Copy)]
pub(super) enum IrqAction<'a> {
    /// They signal these from now on, from the first of them on; one that is none is left as it is.
    Signal(u32, &'a [Option<BorrowedFd<'a>>]),
    /// All are switched off.
    Off,
    /// A level that was masked when it was signalled is let through again, now.
    Unmask,
    /// The same whenever this is signalled.
    UnmaskBy(BorrowedFd<'a>),
}

/// Does something about a device's interrupts of one kind. `ENOSPC`: the host has fewer than are asked for, and gives none.
pub(super) fn set_irqs(device: BorrowedFd<'_>, index: u32, action: IrqAction<'_>) -> Result<()> {
    let number = |fd: &Option<BorrowedFd<'_>>| fd.map_or(-1, |fd| fd.as_raw_fd()) as u32;
    let (flags, start, count, fds) = match action {
        IrqAction::Signal(start, fds) => (
            VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
            start,
            fds.len() as u32,
            fds.iter().map(number).collect(),
        ),
        IrqAction::Off => (VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER, 0, 0, Vec::new()),
        IrqAction::Unmask => (VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK, 0, 1, Vec::new()),
        IrqAction::UnmaskBy(fd) => {
            (VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_UNMASK, 0, 1, vec![number(&Some(fd))])
        }
    };
    let head = [0, flags, index, start, count];
    let mut words: Vec<u32> = head.into_iter().chain(fds).collect();
    words[0] = (words.len() * 4) as u32;
    // SAFETY: the descriptors are open; the call reads as many words as the first says there are bytes.
    match unsafe { raw::device_set_irqs(device.as_raw_fd(), words.as_ptr()) }? {
        0 => Ok(()),
        _ => Err(nix::Error::ENOSPC),
    }
}

/// Resets a device.
pub(super) fn reset(device: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: the descriptor is open; the call takes nothing else.
    unsafe { raw::device_reset(device.as_raw_fd()) }.map(drop)
}

/// What a mapping of a container is told.
pub(super) type DmaMap = vfio_iommu_type1_dma_map;

/// Makes a mapping of a container, or changes the address of one.
///
/// # Safety
///
/// A device writes to that memory whenever it likes, until the mapping is gone: it must be such that this is no surprise.
pub(super) unsafe fn map(container: BorrowedFd<'_>, mapping: DmaMap) -> Result<()> {
    let mapping = DmaMap { argsz: size::<DmaMap>(), ..mapping };
    // SAFETY: the descriptor is open; the structure outlives the call. The rest is the caller's promise.
    unsafe { raw::map_dma(container.as_raw_fd(), &raw const mapping) }.map(drop)
}

/// Makes the address of a mapping of a container invalid, and leaves it otherwise as it is.
pub(super) fn forget_address(
    container: BorrowedFd<'_>,
    flags: u32,
    iova: u64,
    size_of_it: u64,
) -> Result<()> {
    let mut mapping = vfio_iommu_type1_dma_unmap {
        argsz: size::<vfio_iommu_type1_dma_unmap>(),
        flags,
        iova,
        size: size_of_it,
        ..Default::default()
    };
    // SAFETY: the descriptor is open; the structure outlives the call.
    unsafe { raw::unmap_dma(container.as_raw_fd(), &raw mut mapping) }.map(drop)
}

/// Gives a device to an IOMMUFD, for as long as it is open. The first to do so has it reset.
pub(super) fn bind(device: BorrowedFd<'_>, iommufd: BorrowedFd<'_>) -> Result<u32> {
    let mut bind = vfio_device_bind_iommufd {
        argsz: size::<vfio_device_bind_iommufd>(),
        iommufd: iommufd.as_raw_fd(),
        ..Default::default()
    };
    // SAFETY: both descriptors are open; the structure outlives the call.
    unsafe { raw::bind_iommufd(device.as_raw_fd(), &raw mut bind) }?;
    Ok(bind.out_devid)
}

/// Lets a device's DMA go to an address space.
pub(super) fn attach(device: BorrowedFd<'_>, ioas: u32) -> Result<()> {
    let mut attach = vfio_device_attach_iommufd_pt {
        argsz: size::<vfio_device_attach_iommufd_pt>(),
        pt_id: ioas,
        ..Default::default()
    };
    // SAFETY: the descriptor is open; the structure outlives the call.
    unsafe { raw::attach_iommufd_pt(device.as_raw_fd(), &raw mut attach) }.map(drop)
}

/// Makes an address space of an IOMMUFD.
pub(super) fn alloc_ioas(iommufd: BorrowedFd<'_>) -> Result<u32> {
    let mut alloc = iommu_ioas_alloc { size: size::<iommu_ioas_alloc>(), ..Default::default() };
    // SAFETY: the descriptor is open; the structure outlives the call.
    unsafe { raw::ioas_alloc(iommufd.as_raw_fd(), &raw mut alloc) }?;
    Ok(alloc.out_ioas_id)
}

/// Makes a mapping of an IOMMUFD by an address of this process.
///
/// # Safety
///
/// As for [`map`].
pub(super) unsafe fn map_address(iommufd: BorrowedFd<'_>, mapping: iommu_ioas_map) -> Result<()> {
    let mut mapping = iommu_ioas_map { size: size::<iommu_ioas_map>(), ..mapping };
    // SAFETY: the descriptor is open; the structure outlives the call. The rest is the caller's promise.
    unsafe { raw::ioas_map(iommufd.as_raw_fd(), &raw mut mapping) }.map(drop)
}

/// Makes a mapping of an IOMMUFD by a file.
///
/// # Safety
///
/// As for [`map`], wherever the file is mapped.
pub(super) unsafe fn map_file(iommufd: BorrowedFd<'_>, mapping: iommu_ioas_map_file) -> Result<()> {
    let mut mapping = iommu_ioas_map_file { size: size::<iommu_ioas_map_file>(), ..mapping };
    // SAFETY: the descriptors are open; the structure outlives the call. The rest is the caller's promise.
    unsafe { raw::ioas_map_file(iommufd.as_raw_fd(), &raw mut mapping) }.map(drop)
}

/// All mappings of an IOMMUFD count as this process's memory from now on. Only those by files can.
pub(super) fn change_process(iommufd: BorrowedFd<'_>) -> Result<()> {
    let mut change = iommu_ioas_change_process { size: size::<iommu_ioas_change_process>(), __reserved: 0 };
    // SAFETY: the descriptor is open; the structure outlives the call.
    unsafe { raw::ioas_change_process(iommufd.as_raw_fd(), &raw mut change) }.map(drop)
}
