//! Letting go of a guest that lives on elsewhere, without standing in its way.
//!
//! Tearing a VM and its mapping of RAM down takes a processor for tens of milliseconds a GiB. The guest's new process is
//! on the same host: what is done here comes last. Last, not never: on a host that is all in use, a thread that ran only
//! on an idle processor would not end for minutes.

use std::sync::Arc;

use crate::machine::Machine;
use crate::priority::stand_back;

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
