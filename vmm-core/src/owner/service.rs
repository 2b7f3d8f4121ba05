//! What a service manager is told (`sd_notify(3)`). Without `NOTIFY_SOCKET` in the environment there is none, and nothing is told.
//!
//! 1. The service is ready when the guest is here, and the main process is the one that has it: on the way of an exec, and after
//!    one that went wrong, that is another than the one that was started.
//! 2. Where `WATCHDOG_USEC` asks for it, the main thread says twice in that time that it goes on, whichever process it is in.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// A guest is here: this process is the service's.
pub(super) fn ready(guest: &str, state: impl std::fmt::Display) {
    let status = format!("guest '{guest}' is {state}");
    tell(&[NotifyState::MainPid(std::process::id()), NotifyState::Ready, NotifyState::Status(&status)]);
}

/// The guest is another process's, for as long as this one takes to execute its new binary, or for good if that fails: its end
/// must not be taken for the service's.
pub(super) fn main_process(pid: u32) {
    tell(&[NotifyState::MainPid(pid)]);
}

/// The service is about to end.
pub(super) fn stopping(why: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(why)]);
}

/// Nothing depends on its being heard but the service itself.
fn tell(what: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(what) {
        tracing::warn!("telling the service manager: {error}");
    }
}

/// When the service manager is to hear again that the main thread goes on.
pub(super) struct Watchdog {
    every: Duration,
    next: Instant,
}

impl Watchdog {
    /// If the environment asks for one.
    pub(super) fn from_environment() -> Option<Self> {
        let asked = std::env::var("WATCHDOG_USEC").ok()?.parse().ok().filter(|us| *us > 0);
        asked.map(|us| Self { every: Duration::from_micros(us) / 2, next: Instant::now() })
    }

    /// Tells it if it is time to, and says for how many milliseconds the thread may wait.
    pub(super) fn tell(&mut self) -> i32 {
        let now = Instant::now();
        if now >= self.next {
            self.next = now + self.every;
            tell(&[NotifyState::Watchdog]);
        }
        let left = self.next.saturating_duration_since(now).as_millis() + 1;
        i32::try_from(left).unwrap_or(i32::MAX)
    }
}
