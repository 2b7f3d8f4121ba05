//! The new image's side: adopt, load, claim; and back to the old binary if that fails.
//!
//! 1. Until the guest is claimed, every inherited descriptor stays open under its number, so that the old binary can
//!    be executed with the same state.
//! 2. An error, a panic, a fatal signal and a passed deadline all lead back to the old binary ([`super::fallback`]).

use std::panic::{self, AssertUnwindSafe};

use super::command::Arrival;
use super::fallback::Fallback;
use super::inherit::{self, Inherited};
use super::state::{DescriptorNumbers, Journey, Settings};
use crate::cpr::Mode;
use crate::cpr::fds::{FdError, FdName, FdTable};
use crate::cpr::format::{FormatError, StateReader};
use crate::cpr::ownership::{Ownership, OwnershipError};
use crate::cpr::report::{Report, Stopwatch, monotonic_ns};
use crate::machine::{Incoming, LoadError, Machine, Overrides};
use crate::monitor::server::MonitorState;

/// Why the new image could not take the guest.
#[derive(Debug, thiserror::Error)]
pub enum ArriveError {
    /// This build is broken.
    #[error("taking the guest over after the exec: this build panicked; its log says where")]
    Panic,
    /// The state could not be read.
    #[error("taking the guest over after the exec: {0}")]
    Io(#[from] std::io::Error),
    /// State was refused.
    #[error("taking the guest over after the exec: {0}")]
    Format(#[from] FormatError),
    /// A descriptor was refused.
    #[error("taking the guest over after the exec: {0}")]
    Fd(#[from] FdError),
    /// The machine could not be built or loaded.
    #[error("taking the guest over after the exec: {0}")]
    Load(#[from] LoadError),
    /// The ownership word does not let us.
    #[error("taking the guest over after the exec: {0}")]
    Ownership(#[from] OwnershipError),
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

/// Takes the guest over, or executes the old binary again. Returns an error only where there is no way back.
pub fn arrive(arrival: Arrival, overrides: &Overrides) -> Result<Arrived, ArriveError> {
    let mut fallback = Fallback::arm(arrival);
    let taken = panic::catch_unwind(AssertUnwindSafe(|| take_over(arrival, overrides, &fallback)));
    match taken.unwrap_or(Err(ArriveError::Panic)) {
        Ok(arrived) => {
            fallback.disarm();
            Ok(arrived)
        }
        Err(error) => {
            fallback.go_back(&error.to_string());
            Err(error)
        }
    }
}

fn take_over(arrival: Arrival, overrides: &Overrides, fallback: &Fallback) -> Result<Arrived, ArriveError> {
    let mut watch = Stopwatch::start();
    let bytes = inherit::read_state(inherit::inherited(arrival.state)?)?;
    let mut reader = StateReader::parse(&bytes)?;
    let journey: Journey = reader.take(0)?;
    fallback.bound(journey.deadline_ns);
    let numbers: DescriptorNumbers = reader.take(0)?;
    let (inherited, mut fds) = Inherited::adopt(&numbers.numbers)?;
    let ownership = Ownership::from_fd(fds.take(&FdName::new("ownership", 0))?)?;
    let monitor: Option<MonitorState> = reader.take_optional(0)?;
    watch.lap("target: decode");
    let incoming = Incoming::prepare(&mut reader, &mut fds, overrides)?;
    incoming.refuse_unclaimed(&fds)?;
    watch.lap("target: build");
    let loaded = incoming.load(&mut reader, &mut watch)?;
    reader.finish()?;
    // The point of no return: from this swap on, this image answers for the guest.
    let claim = ownership.claim()?;
    let entered_ns = monotonic_ns();
    let was_running = loaded.will_run();
    let machine = loaded.enter(claim);
    watch.lap("target: enter");
    let descriptors = numbers.numbers.len() as u32;
    inherited.close();
    inherit::close(arrival.state);
    let mut phases = journey.phases;
    phases.extend_from_slice(watch.laps());
    let report = Report {
        mode: Mode::CprExec,
        downtime_us: was_running.then(|| entered_ns.saturating_sub(journey.stopped_ns) / 1000),
        total_us: monotonic_ns().saturating_sub(journey.started_ns) / 1000,
        phases,
        state_bytes: bytes.len() as u64,
        descriptors,
        vcpus: machine.vcpu_count(),
        ram_kept: machine.ram_size(),
    };
    // Only an image that has nothing to fall back to is one that came back.
    let came_back = arrival.fallback.is_none().then(Fallback::reason).flatten();
    Ok(Arrived { machine, fds, monitor, report, came_back, settings: journey.settings })
}
