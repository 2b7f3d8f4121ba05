//! Whether an adopted descriptor is what its name says.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{SockType, UnixAddr, getsockname, getsockopt, sockopt};
use nix::unistd::isatty;

use crate::cpr::fds::{FdError, FdName};

/// What a descriptor must be able to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

fn wrong(name: &FdName, found: &str, expected: &str) -> FdError {
    FdError::Wrong { name: name.clone(), found: found.into(), expected: expected.into() }
}

fn io<E: Into<std::io::Error>>(name: &FdName, doing: &'static str) -> impl FnOnce(E) -> FdError {
    let name = name.clone();
    move |source| FdError::Io { name, doing, source: source.into() }
}

/// A UNIX stream socket that listens, or one that is connected. It is made non-blocking.
pub(super) fn socket(name: &FdName, fd: OwnedFd, listening: bool) -> Result<OwnedFd, FdError> {
    let expected = if listening { "a listening UNIX socket" } else { "a connected UNIX socket" };
    let unix = getsockname::<UnixAddr>(std::os::fd::AsRawFd::as_raw_fd(&fd)).is_ok();
    if !unix || getsockopt(&fd, sockopt::SockType) != Ok(SockType::Stream) {
        return Err(wrong(name, "no UNIX stream socket", expected));
    }
    match (getsockopt(&fd, sockopt::AcceptConn).map_err(io(name, "looking at the socket"))?, listening) {
        (true, false) => return Err(wrong(name, "a listening socket", expected)),
        (false, true) => return Err(wrong(name, "not listening", expected)),
        _ => {}
    }
    non_blocking(name, fd)
}

/// The controlling side of a pseudo-terminal. It is made non-blocking.
pub(super) fn pty(name: &FdName, fd: OwnedFd) -> Result<OwnedFd, FdError> {
    if !isatty(&fd).unwrap_or(false) || super::pty::path_of(&fd).is_err() {
        return Err(wrong(name, "something else", "the controlling side of a pseudo-terminal"));
    }
    non_blocking(name, fd)
}

/// A file, pipe, terminal or socket that can be read from or written to. Its flags are shared with others, and left.
pub(super) fn stream(name: &FdName, fd: OwnedFd, access: Access) -> Result<OwnedFd, FdError> {
    let flags = fcntl(&fd, FcntlArg::F_GETFL).map_err(io(name, "reading its flags"))?;
    let mode = OFlag::from_bits_truncate(flags) & OFlag::O_ACCMODE;
    let (one_way, expected) = match access {
        Access::Read => (OFlag::O_RDONLY, "open for reading"),
        Access::Write => (OFlag::O_WRONLY, "open for writing"),
    };
    if mode != OFlag::O_RDWR && mode != one_way {
        return Err(wrong(name, "open the other way", expected));
    }
    let file = File::from(fd);
    let kind = file.metadata().map_err(io(name, "looking at it"))?.file_type();
    if kind.is_dir() || kind.is_block_device() {
        return Err(wrong(name, "a directory or a block device", "a file, pipe, terminal or socket"));
    }
    Ok(file.into())
}

fn non_blocking(name: &FdName, fd: OwnedFd) -> Result<OwnedFd, FdError> {
    set_non_blocking(&fd).map_err(io(name, "making it non-blocking"))?;
    Ok(fd)
}

pub(super) fn set_non_blocking(fd: impl AsFd) -> nix::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}
