//! The system calls of the Live Update Orchestrator (the kernel's `include/uapi/linux/liveupdate.h`).

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::Result;

/// Bytes of a session's name, with the 0 at its end.
pub(super) const NAME: usize = 64;

/// A session by its name.
#[repr(C)]
struct Named {
    size: u32,
    fd: i32,
    name: [u8; NAME],
}

/// A file of a session by its token.
#[repr(C)]
struct Tokened {
    size: u32,
    fd: i32,
    token: u64,
}

mod raw {
    use super::{Named, Tokened};

    /// Its calls have numbers without sizes.
    const fn number(of: u8) -> nix::sys::ioctl::ioctl_num_type {
        nix::request_code_none!(0xba, of)
    }

    nix::ioctl_readwrite_bad!(create_session, number(0x00), Named);
    nix::ioctl_readwrite_bad!(retrieve_session, number(0x01), Named);
    nix::ioctl_readwrite_bad!(preserve_fd, number(0x40), Tokened);
    nix::ioctl_readwrite_bad!(retrieve_fd, number(0x41), Tokened);
}

/// Makes a session, or finds one that the kernel before this has left.
pub(super) fn session(device: BorrowedFd<'_>, name: &[u8; NAME], new: bool) -> Result<OwnedFd> {
    let mut named = Named { size: size_of::<Named>() as u32, fd: -1, name: *name };
    let (device, named_at) = (device.as_raw_fd(), &raw mut named);
    // SAFETY: the descriptor is open; the structure outlives the call.
    unsafe {
        if new { raw::create_session(device, named_at) } else { raw::retrieve_session(device, named_at) }
    }?;
    // SAFETY: the call has made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(named.fd) })
}

/// Has a file outlive the kernel, for as long as the session is open.
pub(super) fn preserve(session: BorrowedFd<'_>, token: u64, file: BorrowedFd<'_>) -> Result<()> {
    let mut tokened = Tokened { size: size_of::<Tokened>() as u32, fd: file.as_raw_fd(), token };
    // SAFETY: both descriptors are open; the structure outlives the call.
    unsafe { raw::preserve_fd(session.as_raw_fd(), &raw mut tokened) }.map(drop)
}

/// Takes a file out that has outlived its kernel.
pub(super) fn retrieve(session: BorrowedFd<'_>, token: u64) -> Result<OwnedFd> {
    let mut tokened = Tokened { size: size_of::<Tokened>() as u32, fd: -1, token };
    // SAFETY: the descriptor is open; the structure outlives the call.
    unsafe { raw::retrieve_fd(session.as_raw_fd(), &raw mut tokened) }?;
    // SAFETY: the call has made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(tokened.fd) })
}
