//! Which share of the processors this process has: more while a guest stands for it, less for what may come last.
//!
//! 1. A load goes before what else the host does, as a host that boots does much ([`Precedence`]): all threads of this process run at a higher
//!    nice level, and so do those that they make, until the guest is entered.
//! 2. Where each session is a group of its own to the scheduler (`autogroup` in sched(7)), nice levels count within it only: the group has one, too. It is
//!    raised if this process leads its session, as a service does: that of a shell has others in it.
//! 3. What may not be raised is left as it is.
//! 4. A thread that nobody waits for goes behind others ([`stand_back`]).

use std::fs;
use std::io;

use nix::unistd::{getpid, getsid};

/// Nine times the share that others have, who still have theirs.
const NICE: i32 = -10;
/// A third of the share that others have.
const BEHIND: i32 = 5;
const TASKS: &str = "/proc/self/task";
const AUTOGROUP: &str = "/proc/self/autogroup";

/// Has this process go before others until it is dropped.
#[derive(Debug)]
pub struct Precedence {
    /// The nice level of the thread that raised it.
    nice: i32,
    autogroup: Option<i32>,
}

impl Precedence {
    /// Takes it, if it may be had.
    pub fn take() -> Option<Self> {
        let nice = nice_of(0).ok().filter(|nice| *nice > NICE)?;
        if let Err(error) = set_nice(0, NICE) {
            tracing::debug!("loading at the usual priority: {error}");
            return None;
        }
        renice(nice, NICE);
        let autogroup = autogroup().filter(|nice| *nice > NICE && set_autogroup(NICE));
        Some(Self { nice, autogroup })
    }
}

impl Drop for Precedence {
    fn drop(&mut self) {
        if let Some(nice) = self.autogroup {
            set_autogroup(nice);
        }
        // What this thread makes from here on is as it was before.
        let own = set_nice(0, self.nice);
        let left = renice(NICE, self.nice);
        if let Some(error) = own.err().or(left) {
            tracing::warn!("going back to nice level {}: {error}", self.nice);
        }
    }
}

/// Has this process, which one that goes before others may have started, have the share that others have.
pub fn as_usual() {
    if nice_of(0).is_ok_and(|nice| nice == NICE)
        && let Err(error) = set_nice(0, 0)
    {
        tracing::warn!("going back to nice level 0: {error}");
    }
}

/// Puts this thread behind others, for good.
pub fn stand_back() {
    if let Err(error) = set_nice(0, BEHIND) {
        tracing::debug!("keeping the usual priority: {error}");
    }
}

/// Moves all threads of this process from one nice level to another; gives the last error.
fn renice(from: i32, to: i32) -> Option<io::Error> {
    let mut error = None;
    for task in fs::read_dir(TASKS).into_iter().flatten().flatten() {
        let Some(tid) = task.file_name().to_str().and_then(|tid| tid.parse().ok()) else { continue };
        // One that has ended meanwhile has no level.
        if nice_of(tid).is_ok_and(|nice| nice == from) {
            error =
                set_nice(tid, to).err().filter(|error| error.raw_os_error() != Some(libc::ESRCH)).or(error);
        }
    }
    error
}

/// The nice level of a thread; 0 is the calling one.
fn nice_of(tid: u32) -> io::Result<i32> {
    // SAFETY: takes and changes no memory but the thread's own errno, which tells a level of -1 from a failure.
    let nice = unsafe {
        *libc::__errno_location() = 0;
        libc::getpriority(libc::PRIO_PROCESS, tid)
    };
    let error = io::Error::last_os_error();
    if nice == -1 && error.raw_os_error() != Some(0) { Err(error) } else { Ok(nice) }
}

/// Gives a thread a nice level; 0 is the calling one.
fn set_nice(tid: u32, nice: i32) -> io::Result<()> {
    // SAFETY: takes no pointers.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, tid, nice) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The nice level of this session's group, if this process leads the session and the kernel has groups.
fn autogroup() -> Option<i32> {
    getsid(None).ok().filter(|leader| *leader == getpid())?;
    fs::read_to_string(AUTOGROUP).ok()?.trim().rsplit_once(" nice ")?.1.parse().ok()
}

fn set_autogroup(nice: i32) -> bool {
    let done = fs::write(AUTOGROUP, nice.to_string());
    if let Err(error) = &done {
        tracing::debug!("setting the session's group to nice level {nice}: {error}");
    }
    done.is_ok()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn threads_go_before_others_until_it_is_dropped() {
        // On a thread of its own: what other tests' threads have is not looked at.
        thread::spawn(|| {
            let before = nice_of(0).unwrap();
            let Some(precedence) = Precedence::take() else {
                return crate::testing::skip(
                    "lab",
                    "the nice level cannot be raised: CAP_SYS_NICE is missing",
                );
            };
            let (tell, told) = mpsc::channel();
            let (leave, left) = mpsc::channel::<()>();
            let made = thread::spawn(move || {
                tell.send(nice_of(0).unwrap()).unwrap();
                left.recv().unwrap_err();
                nice_of(0).unwrap()
            });
            assert_eq!((nice_of(0).unwrap(), told.recv().unwrap()), (NICE, NICE));
            drop(precedence);
            drop(leave);
            assert_eq!((nice_of(0).unwrap(), made.join().unwrap()), (before, before));
        })
        .join()
        .unwrap();
    }
}
