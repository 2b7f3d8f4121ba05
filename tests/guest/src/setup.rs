//! The kernel's console, and where and how a thread runs.

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Keeps the kernel's messages off the console; only a panic is still printed.
pub fn quiet_console() {
    const SYSLOG_ACTION_CONSOLE_OFF: libc::c_int = 6;
    // SAFETY: this action reads and writes no buffer.
    unsafe { libc::klogctl(SYSLOG_ACTION_CONSOLE_OFF, std::ptr::null_mut(), 0) };
    // What the kernel was printing at this moment comes to its end.
    std::thread::sleep(std::time::Duration::from_millis(300));
}

/// Binds the calling thread to one CPU.
pub fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    if set.set(cpu).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), &set);
    }
}

/// Gives the calling thread a nice level.
pub fn nice(level: i32) {
    // SAFETY: takes no pointers, and 0 names the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, level) };
}

/// Lets real-time threads run for as long as they want. A guest's clock goes on while it is paused, and its scheduler charges
/// that time to whoever ran at that moment, unless it counts it as stolen: a real-time thread would be held back for as long again, and
/// an ordinary one until each other that wants to run has had as much. So whoever answers, or writes to the console that answers go
/// to, is a real-time thread.
pub fn unthrottle() {
    // Without it they are late, and the lab says so.
    let _ = std::fs::write("/proc/sys/kernel/sched_rt_runtime_us", "-1");
}

/// How much a real-time thread goes before others of its kind.
#[derive(Clone, Copy)]
pub enum Before {
    /// Any ordinary thread.
    Load = 5,
    /// Those that answer, too.
    Answers = 10,
}

/// Lets the calling thread run before others, so that these do not delay it.
pub fn real_time(before: Before) {
    let parameter = libc::sched_param { sched_priority: before as libc::c_int };
    // SAFETY: the parameter outlives the call, and 0 names the calling thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameter) };
}
