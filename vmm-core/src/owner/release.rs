//! Letting go of a guest that lives on elsewhere, without standing in its way.
//!
//! Tearing a VM and its mapping of RAM down takes a processor for tens of milliseconds a GiB. The guest's new process is
//! on the same host: whatever is done here runs only where nothing else wants to.

use crate::machine::Machine;
use std::sync::Arc;

/// Makes every thread of this process one that runs only on an idle processor (`SCHED_IDLE`), for good.
fn stand_back() {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let ids = threads.filter_map(|thread| thread.file_name().to_str()?.parse::<i32>().ok());
    for id in ids {
        let parameters = libc::sched_param { sched_priority: 0 };
        // SAFETY: the parameters are valid for the call; the thread may be gone, which is an error and nothing else.
        if unsafe { libc::sched_setscheduler(id, libc::SCHED_IDLE, &raw const parameters) } < 0 {
            tracing::debug!("thread {id} keeps its priority: {}", std::io::Error::last_os_error());
        }
    }
}

/// Lets go of a guest, in the background.
pub(super) fn release(machine: Arc<Machine>) {
    stand_back();
    std::thread::spawn(move || drop(machine));
}
