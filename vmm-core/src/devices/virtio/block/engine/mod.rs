//! Asynchronous I/O on an image.
//!
//! 1. Data goes straight between the image and guest RAM; only what direct I/O cannot take as it lies is copied.
//! 2. A request is answered once, when all of it is done or has failed: what the kernel leaves short goes on.
//! 3. A request's buffers live until the kernel is done with them, even if the engine is dropped before.
//! 4. [`Engine::drain`] waits no longer than it is told; after it gave up, everything goes on as before.
//!
//! `operation.rs` is what can be asked, `job.rs` one of them under way, `uring.rs` does it by io_uring(7), `threads.rs` by
//! a pool of threads, `blocking.rs` is what such a thread does.

mod blocking;
mod job;
mod operation;
#[cfg(test)]
mod tests;
mod threads;
mod uring;

use std::io;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::EventFd;

pub use self::operation::Operation;
pub use self::threads::ThreadEngine;
pub use self::uring::UringEngine;
use super::config::Aio;
use super::image::Backing;
use crate::devices::eventfd;

/// A request that is done.
#[derive(Debug)]
pub struct Completion {
    /// What [`Engine::submit`] was given with it.
    pub token: u64,
    /// Whether all of it was done.
    pub result: io::Result<()>,
}

/// Requests that were not answered in time. They are still under way.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "requests without an answer from the host's disk: {count}; the oldest, a {oldest}, has waited {} ms",
    age.as_millis()
)]
pub struct Undrained {
    /// How many.
    pub count: usize,
    /// What the oldest is (`read`, `flush`, …).
    pub oldest: &'static str,
    /// How long the oldest has been under way.
    pub age: Duration,
}

/// Asynchronous I/O on an image, for one queue. Any thread may use it, one at a time.
pub trait Engine: Send {
    /// Takes a request. It may wait for [`Self::kick`].
    fn submit(&mut self, token: u64, operation: Operation);

    /// Gets everything that was submitted under way.
    fn kick(&mut self);

    /// Appends what is done since the last time to `done`, and goes on with what was left short.
    fn reap(&mut self, done: &mut Vec<Completion>);

    /// Whether there is something to reap, as far as can be seen without a system call. What is not seen rings.
    fn has_done(&mut self) -> bool;

    /// Readable when there may be something to reap. Only [`Self::reap`] and [`Self::drain`] read it.
    fn event(&self) -> &EventFd;

    /// How many requests are submitted and not reaped.
    fn in_flight(&self) -> usize;

    /// The oldest request in flight: what it is, and since when.
    fn oldest(&self) -> Option<(&'static str, Instant)>;

    /// Waits until nothing is in flight, until `deadline` at the most. What is done meanwhile is appended to `done`
    /// in either case.
    fn drain(&mut self, deadline: Instant, done: &mut Vec<Completion>) -> Result<(), Undrained> {
        self.kick();
        loop {
            self.reap(done);
            let Some((oldest, since)) = self.oldest() else { return Ok(()) };
            let now = Instant::now();
            let left = deadline.saturating_duration_since(now);
            if left.is_zero() {
                return Err(Undrained { count: self.in_flight(), oldest, age: now - since });
            }
            wait(self.event(), left);
        }
    }
}

/// Makes an engine for one queue of `depth` requests. Without a choice, threads stand in where there is no io_uring.
pub fn open(backing: &Backing, aio: Option<Aio>, depth: u16) -> io::Result<Box<dyn Engine>> {
    let uring = || UringEngine::new(backing.clone(), depth);
    match aio {
        Some(Aio::Threads) => Ok(Box::new(ThreadEngine::new(backing.clone())?)),
        Some(Aio::IoUring) => Ok(Box::new(uring()?)),
        None => match uring() {
            Ok(engine) => Ok(Box::new(engine)),
            Err(e) => {
                tracing::info!("no io_uring here ({e}): block I/O is done by threads");
                Ok(Box::new(ThreadEngine::new(backing.clone())?))
            }
        },
    }
}

/// Waits for an event, or for `left` (rounded up to a millisecond).
fn wait(event: &EventFd, left: Duration) {
    let left = PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
    // An error is a signal: who waits looks and waits again.
    let _ = poll(&mut [PollFd::new(eventfd::borrow(event), PollFlags::POLLIN)], left);
}
