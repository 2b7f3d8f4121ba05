//! A device that reports an error that nobody can correct.
//!
//! The lab's devices make none. VFIO lets whoever has a device open ring its eventfds by hand (`VFIO_DEVICE_SET_IRQS` without
//! data), so its owner's descriptor is taken and the one for errors rung: the kernel's part is the same from there on.

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result, ensure};

/// Where the devices are that a process has open through IOMMUFD.
const NODES: &str = "/dev/vfio/devices/";
/// `VFIO_DEVICE_SET_IRQS`.
const SET_IRQS: libc::Ioctl = 0x3b6e;
/// `VFIO_IRQ_SET_DATA_NONE`, `VFIO_IRQ_SET_ACTION_TRIGGER`.
const TRIGGER: u32 = 1 | 1 << 5;
/// `VFIO_PCI_ERR_IRQ_INDEX`.
const ERROR: u32 = 3;

/// Rings for a device that this process has open.
pub fn report(process: u32) -> Result<()> {
    let device = device_of(process)?;
    // argsz, flags, index, start, count
    let set: [u32; 5] = [20, TRIGGER, ERROR, 0, 1];
    // SAFETY: the descriptor is open; the call reads as many bytes as the first word says.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), SET_IRQS, set.as_ptr()) };
    ensure!(done == 0, "ringing for an error: {}", std::io::Error::last_os_error());
    Ok(())
}

/// A duplicate of its descriptor.
fn device_of(process: u32) -> Result<OwnedFd> {
    let fds = fs::read_dir(format!("/proc/{process}/fd"))?.flatten();
    let devices = fds.filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(NODES)));
    let mut numbers = devices.filter_map(|fd| fd.file_name().to_str()?.parse::<RawFd>().ok());
    let number = numbers.next().context("the guest's owner has no device open")?;
    // SAFETY: the call takes numbers.
    let owner = take(unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) })?;
    // SAFETY: as above; the descriptor is open.
    take(unsafe { libc::syscall(libc::SYS_pidfd_getfd, owner.as_raw_fd(), number, 0) })
}

/// What a system call made.
fn take(made: libc::c_long) -> Result<OwnedFd> {
    ensure!(made >= 0, "taking a descriptor of the guest's owner: {}", std::io::Error::last_os_error());
    // SAFETY: it was just made, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(made as RawFd) })
}
