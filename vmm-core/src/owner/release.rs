//! Letting go of a guest that lives on elsewhere, without standing in its way.
//!
//! Tearing a VM and its mapping of RAM down takes a processor for tens of milliseconds a GiB. The guest's new process is
//! on the same host: what is done here comes last. Last, not never: on a host that is all in use, a thread that ran only
//! on an idle processor would not end for minutes.

use std::sync::Arc;

use crate::machine::Machine;

/// A third of the share that others have.
const NICE: i32 = 5;

/// Puts this thread behind others, for good.
pub(super) fn stand_back() {
    // SAFETY: takes no pointers; on Linux, 0 is the calling thread.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) } < 0 {
        tracing::debug!("keeping the usual priority: {}", std::io::Error::last_os_error());
    }
}

/// Lets go of a guest: at once of what its devices have open, which others may wait for; of the rest in the background.
pub(super) fn release(machine: Arc<Machine>) {
    // Where somebody still looks at it, he is the last to let go.
    let Some(machine) = Arc::into_inner(machine) else { return };
    let remains = machine.strip();
    std::thread::spawn(move || {
        stand_back();
        drop(remains);
    });
}
