//! The calls of userfaultfd (the kernel's `include/uapi/linux/userfaultfd.h`).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The version of the interface.
pub(super) const API: u64 = 0xaa;
/// Pages of shared memory can be waited for.
pub(super) const MISSING_SHMEM: u64 = 1 << 5;
/// Linux 6.6 has it. From then on no thread that works for a process in the kernel outlives it, to find zeros when it ends.
pub(super) const POISON: u64 = 1 << 14;
/// Pages that are missing are waited for.
pub(super) const MODE_MISSING: u64 = 1;
/// A page is waited for.
pub(super) const EVENT_PAGEFAULT: u8 = 0x12;

#[repr(C)]
pub(super) struct Api {
    pub api: u64,
    pub features: u64,
    pub ioctls: u64,
}

#[repr(C)]
pub(super) struct Range {
    pub start: u64,
    pub len: u64,
}

#[repr(C)]
pub(super) struct Register {
    pub range: Range,
    pub mode: u64,
    pub ioctls: u64,
}

#[repr(C)]
pub(super) struct Copy {
    pub to: u64,
    pub from: u64,
    pub len: u64,
    pub mode: u64,
    /// Bytes that were copied, or the error, negative.
    pub done: i64,
}

#[repr(C)]
pub(super) struct Zero {
    pub range: Range,
    pub mode: u64,
    pub done: i64,
}

/// Bytes of a message, and where a page fault has its address.
pub(super) const MESSAGE: usize = 32;
pub(super) const ADDRESS: std::ops::Range<usize> = 16..24;

pub(super) mod raw {
    use super::{Api, Copy, Range, Register, Zero};

    nix::ioctl_write_int_bad!(new, nix::request_code_none!(0xaa, 0));
    nix::ioctl_readwrite!(api, 0xaa, 0x3f, Api);
    nix::ioctl_readwrite!(register, 0xaa, 0x00, Register);
    nix::ioctl_read!(unregister, 0xaa, 0x01, Range);
    nix::ioctl_read!(wake, 0xaa, 0x02, Range);
    nix::ioctl_readwrite!(copy, 0xaa, 0x03, Copy);
    nix::ioctl_readwrite!(zeropage, 0xaa, 0x04, Zero);
}

/// Makes one that also knows of pages that the kernel waits for: by the device, whose permissions tell who may, or by the system call.
pub(super) fn open() -> io::Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let made = if let Ok(device) = File::options().read(true).write(true).open("/dev/userfaultfd") {
        // SAFETY: takes a number, and gives a descriptor.
        unsafe { raw::new(device.as_raw_fd(), flags) }?
    } else {
        // SAFETY: as above.
        let made = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        if made < 0 {
            return Err(io::Error::last_os_error());
        }
        made as i32
    };
    // SAFETY: a descriptor that was just made, and is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(made) })
}
