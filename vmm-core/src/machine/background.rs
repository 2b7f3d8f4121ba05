//! Long work beside a guest that runs.

/// Does something long that may wait for whatever else wants to run (`SCHED_BATCH`).
pub(crate) fn in_background<T>(work: impl FnOnce() -> T) -> T {
    let set = |policy| {
        let parameters = libc::sched_param { sched_priority: 0 };
        // SAFETY: the parameters are valid for the call; 0 is the calling thread.
        unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
    };
    set(libc::SCHED_BATCH);
    let result = work();
    set(libc::SCHED_OTHER);
    result
}
