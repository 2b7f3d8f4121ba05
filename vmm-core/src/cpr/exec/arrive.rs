//! The new image's side: it takes the guest from the stopover, or executes the old binary again, which does.
//!
//! An error and a panic lead back to the old binary. A crash does not, and costs no more than the process: the guest
//! stays in the stopover.

use std::os::unix::net::UnixStream;
use std::panic::{self, AssertUnwindSafe};
use std::time::Duration;

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::command::Arrival;
use super::fallback::{self, WayBack};
use super::inherit;
use super::state::Settings;
use crate::cpr::fds::FdTable;
use crate::cpr::report::Report;
use crate::cpr::transfer::channel::Channel;
use crate::cpr::transfer::message::ProtocolError;
use crate::cpr::transfer::target::{self, Taken, TargetError};
use crate::machine::{Machine, Overrides};
use crate::monitor::server::MonitorState;

/// Why the new image could not take the guest. It runs on in the stopover process.
#[derive(Debug, thiserror::Error)]
pub enum ArriveError {
    /// This build is broken.
    #[error("taking the guest over after the exec: this build panicked; its log says where")]
    Panic,
    /// An inherited descriptor cannot be used.
    #[error("taking the guest over after the exec: the inherited descriptors: {0}")]
    Io(#[from] std::io::Error),
    /// The stopover did not give it, or it could not be taken.
    #[error("after the exec: {0}")]
    Target(#[from] TargetError),
    /// The guest powered off on its way.
    #[error("the guest powered off while this process executed its new binary")]
    GuestEnded,
    /// The process at the other end is no stopover.
    #[error("taking the guest over after the exec: the process that has it does not say that it is an exec")]
    NoJourney,
}

/// A guest that came through an exec, and runs if it ran.
#[derive(Debug)]
pub struct Arrived {
    /// The machine.
    pub machine: Machine,
    /// The descriptors that are not the machine's.
    pub fds: FdTable,
    /// The monitor's clients.
    pub monitor: Option<MonitorState>,
    /// How it went.
    pub report: Report,
    /// Why the new binary could not take the guest, where this is the old one again.
    pub came_back: Option<String>,
    /// What the monitor's users had set.
    pub settings: Settings,
}

/// Takes the guest over, or executes the old binary again.
pub fn arrive(arrival: Arrival, overrides: &Overrides) -> Result<Arrived, ArriveError> {
    let way_back = match arrival.back {
        None => None,
        Some((channel, binary)) => {
            Some(WayBack { channel: inherit::take(channel)?, binary: inherit::take(binary)? })
        }
    };
    let taken = panic::catch_unwind(AssertUnwindSafe(|| take_over(arrival, overrides)));
    let error = match taken.unwrap_or(Err(ArriveError::Panic)) {
        Ok(mut arrived) => {
            // Only an image that has no way back is one that came back.
            arrived.came_back = way_back.is_none().then(fallback::reason).flatten();
            return Ok(arrived);
        }
        Err(error) => error,
    };
    if let Some(way_back) = way_back {
        let failed = way_back.go(&error.to_string());
        tracing::error!("executing the old binary again: {failed}");
    }
    if stopover_ended_well() { Err(ArriveError::GuestEnded) } else { Err(error) }
}

/// Whether the stopover, this process's only child, has come to an orderly end: then its guest has, too. It may just be
/// about to.
fn stopover_ended_well() -> bool {
    for _ in 0..20 {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(50)),
            ended => return matches!(ended, Ok(WaitStatus::Exited(_, 0))),
        }
    }
    false
}

fn take_over(arrival: Arrival, overrides: &Overrides) -> Result<Arrived, ArriveError> {
    let channel = Channel::new(UnixStream::from(inherit::take(arrival.channel)?), None)?;
    let no_main = || {
        let why = "an exec has no main channel of its own".into();
        Err(ProtocolError::Malformed { kind: "Hello", why })
    };
    let Taken { machine, fds, monitor, journey, report } = target::take_over(channel, no_main, overrides)?;
    let journey = journey.ok_or(ArriveError::NoJourney)?.and("back", &report);
    reap(journey.stopover);
    let settings = journey.settings.clone();
    Ok(Arrived { machine, fds, monitor, report: journey.report(&report), came_back: None, settings })
}

/// Waits for the stopover's end, in the background: it is a child of this process.
fn reap(stopover: u32) {
    let pid = Pid::from_raw(stopover as i32);
    std::thread::spawn(move || {
        if let Err(error) = waitpid(pid, None) {
            tracing::debug!("waiting for the stopover process {pid}: {error}");
        }
    });
}
