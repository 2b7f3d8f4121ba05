//! Eventfds, as devices use them: nobody waits when reading one, and no other program inherits it.

use std::os::fd::{AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::EventFd;

use super::DeviceError;

/// Makes one for the device `id`.
pub fn make(id: &str) -> Result<EventFd, DeviceError> {
    open().map_err(DeviceError::io(id, "making an eventfd"))
}

/// Makes one.
pub fn open() -> std::io::Result<EventFd> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
}

/// One as a descriptor.
pub fn borrow(eventfd: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the eventfd is open as long as it is borrowed.
    unsafe { BorrowedFd::borrow_raw(eventfd.as_raw_fd()) }
}
