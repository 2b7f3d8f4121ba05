//! The old image's side: stop, save, `execve`; and back again if that fails.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

use super::command::{Arrival, ExecCommand};
use super::inherit;
use super::state::{DescriptorNumbers, Journey, Settings};
use crate::cpr::Mode;
use crate::cpr::error::{HandoverError, InPhase};
use crate::cpr::fds::FdName;
use crate::cpr::format::StateWriter;
use crate::cpr::ownership::Ownership;
use crate::cpr::report::{Phase, Stopwatch, monotonic_ns};
use crate::cpr::transfer::channel::was_cancelled;
use crate::cpr::transfer::source::{Limits, Passengers};
use crate::machine::Machine;

/// An exec that is about to happen.
#[derive(Debug)]
pub struct Departure {
    /// What to execute.
    pub command: ExecCommand,
    /// The bounds.
    pub limits: Limits,
    /// Becomes readable when somebody cancels.
    pub cancel: OwnedFd,
    /// What the monitor's users have set.
    pub settings: Settings,
}

/// Executes the new binary in place of this one. Returns only if that failed, with the guest as it was.
pub fn depart(
    machine: &Machine,
    departure: &Departure,
    mut watch: Stopwatch,
    passengers: Passengers<'_>,
) -> HandoverError {
    match attempt(machine, departure, &mut watch, passengers) {
        Err(error) => error,
        Ok(never) => match never {},
    }
}

fn attempt(
    machine: &Machine,
    departure: &Departure,
    watch: &mut Stopwatch,
    passengers: Passengers<'_>,
) -> Result<std::convert::Infallible, HandoverError> {
    let Departure { command, limits, cancel, settings } = departure;
    let prepare = Phase::Prepare;
    let old = File::open("/proc/self/exe").in_phase(prepare)?;
    let (ownership, word) = Ownership::create().in_phase(prepare)?;
    let mut fds = machine.descriptors(Mode::CprExec).in_phase(prepare)?;
    fds.insert(FdName::new("ownership", 0), word).in_phase(prepare)?;
    let mut writer = StateWriter::new(machine.header(Mode::CprExec));
    machine.describe(Mode::CprExec, &mut writer).in_phase(prepare)?;
    passengers(&mut writer, &mut fds)?;
    let numbers = fds.iter().map(|(name, fd)| (name.clone(), fd.as_raw_fd())).collect();
    writer.put(0, &DescriptorNumbers { numbers }).in_phase(prepare)?;
    watch.lap(prepare.name());
    if was_cancelled(cancel.as_fd()) {
        return Err(HandoverError::cancelled(prepare));
    }

    let deadline_ns = monotonic_ns() + limits.downtime.as_nanos() as u64;
    let mut stopped = machine.quiesce(Instant::now() + limits.downtime).in_phase(Phase::Stop)?;
    watch.lap(Phase::Stop.name());
    stopped.save(&mut writer).in_phase(Phase::Save)?;
    watch.lap(Phase::Save.name());
    let journey = Journey {
        started_ns: watch.started_ns(),
        stopped_ns: stopped.stopped_ns(),
        deadline_ns,
        phases: watch.laps().to_vec(),
        settings: settings.clone(),
    };
    writer.put(0, &journey).in_phase(Phase::Save)?;
    let state = inherit::seal_state(&writer.finish().in_phase(Phase::Save)?).in_phase(Phase::Save)?;
    let arrival = Arrival { state: state.as_raw_fd(), fallback: Some(old.as_raw_fd()) };
    let argv = command.argv(&arrival).in_phase(Phase::Handover)?;
    let program = argv.first().cloned().unwrap_or_default();

    stopped.offer(&ownership).in_phase(Phase::Handover)?;
    let kept = [state.as_fd(), old.as_fd()];
    let error = match inherit::keep_open(&fds, &kept) {
        Err(error) => error.to_string(),
        // The point of no return, if it succeeds: from then on the new image answers for the guest.
        Ok(()) => execute(&program, &argv),
    };
    inherit::close_on_exec_again(fds.iter().map(|(_, fd)| fd.as_fd()).chain(kept));
    stopped.take_back(&ownership).in_phase(Phase::Handover)?;
    let program = command.program().display();
    Err(HandoverError::new(Phase::Handover, format!("executing {program}: {error}")))
}

fn execute(program: &CString, argv: &[CString]) -> String {
    match nix::unistd::execvp(program, argv) {
        Err(errno) => errno.to_string(),
        Ok(never) => match never {},
    }
}
