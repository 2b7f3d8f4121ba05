//! Descriptors that a manager opened and gave to this process by their numbers.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, fcntl};

/// A duplicate, which no program that is executed gets. The number itself stays open until it is [closed](close).
pub fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the borrow ends with the call, which answers EBADF if the number is no open descriptor.
    let copy = fcntl(unsafe { BorrowedFd::borrow_raw(number) }, FcntlArg::F_DUPFD_CLOEXEC(3))?;
    // SAFETY: the kernel has just made it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Closes a number that was given, once its duplicate was seen to be what it should be.
///
/// # Safety
///
/// Nothing else in this process has it.
pub unsafe fn close(number: RawFd) {
    // SAFETY: the caller's promise.
    drop(unsafe { OwnedFd::from_raw_fd(number) });
}
