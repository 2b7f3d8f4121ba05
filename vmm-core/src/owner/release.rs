//! Letting go of a guest that lives on elsewhere, without standing in its way.
//!
//! Tearing a VM and its mapping of RAM down takes a processor for tens of milliseconds a GiB. The guest's new process is
//! on the same host: what is done here runs only where nothing else wants to. The monitor goes on as before.

use std::sync::Arc;

use crate::machine::Machine;

/// Makes this thread one that runs only on an idle processor (`SCHED_IDLE`), for good.
pub(super) fn stand_back() {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters are valid for the call; 0 is the calling thread.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) } < 0 {
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
