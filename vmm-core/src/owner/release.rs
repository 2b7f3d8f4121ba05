//! Letting go of a guest that lives on elsewhere, without standing in its way.
//!
//! Tearing a VM and its mapping of RAM down takes a processor for tens of milliseconds a GiB. The guest's new process is
//! on the same host: what is done here comes last. Last, not never: on a host that is all in use, a thread that ran only
//! on an idle processor would not end for minutes.

use std::sync::Arc;

use crate::machine::Machine;

/// Puts this thread behind all others (nice 19), for good.
pub(super) fn stand_back() {
    // SAFETY: takes no pointers; on Linux, 0 is the calling thread.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) } < 0 {
        tracing::debug!("keeping the usual priority: {}", std::io::Error::last_os_error());
    }
}

/// Lets go of a guest, in the background.
pub(super) fn release(machine: Arc<Machine>) {
    std::thread::spawn(move || {
        stand_back();
        drop(machine);
    });
}
