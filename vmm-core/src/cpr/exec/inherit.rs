//! Descriptors over `execve`: close-on-exec cleared at the last moment, set again by the new image.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// Whether a descriptor is closed by `execve`.
pub fn set_close_on_exec(fd: impl AsFd, close: bool) -> io::Result<()> {
    let flags = if close { FdFlag::FD_CLOEXEC } else { FdFlag::empty() };
    Ok(fcntl(fd, FcntlArg::F_SETFD(flags)).map(drop)?)
}

/// Has `execve` close every descriptor but the standard streams and these: whatever libraries or whoever started this process
/// left open would otherwise grow in number with each exec.
pub fn keep_only(kept: &[&OwnedFd]) -> io::Result<()> {
    // SAFETY: marks descriptors and closes none; takes no pointer.
    if unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) } < 0 {
        return Err(io::Error::last_os_error());
    }
    kept.iter().try_for_each(|fd| set_close_on_exec(fd, false))
}

/// Reads numbers of descriptors, with commas between them. A standard stream is none that is left to a process.
pub fn numbers(text: &str) -> Option<Vec<RawFd>> {
    text.split(',').map(|word| word.parse().ok().filter(|fd| *fd > 2)).collect()
}

/// Takes a descriptor that the process before this one left open, close-on-exec from here on. To be called once for a
/// number, and only with one that the command line named.
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(io::Error::other(format!("descriptor {number} is a standard stream")));
    }
    // SAFETY: F_GETFD takes no pointer; it tells whether the number is an open descriptor.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open (seen just now).
    set_close_on_exec(unsafe { BorrowedFd::borrow_raw(number) }, true)?;
    // SAFETY: it was left to this process by the one before; nothing else here knows the number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, IntoRawFd};

    use super::*;

    #[test]
    fn a_descriptor_that_was_left_open_is_taken_and_will_be_closed_by_the_next_exec() {
        let left = std::fs::File::open("/dev/null").unwrap();
        set_close_on_exec(&left, false).unwrap();
        let taken = take(left.into_raw_fd()).unwrap();
        let flags = fcntl(&taken, FcntlArg::F_GETFD).unwrap();
        assert_eq!(FdFlag::from_bits_retain(flags), FdFlag::FD_CLOEXEC);
        assert!(taken.as_raw_fd() > 2);
    }

    #[test]
    fn a_number_that_is_no_descriptor_or_a_standard_stream_is_refused() {
        assert!(take(999_999).is_err());
        assert!(take(1).unwrap_err().to_string().contains("standard stream"));
    }
}
