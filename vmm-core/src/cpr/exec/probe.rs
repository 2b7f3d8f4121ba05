//! Asking the new binary whether it could, before anything is touched.
//!
//! The new binary is started as a child and told everything that a transfer's target is told before the stop; it builds
//! the machine, answers, and ends. A binary that does not exist, ends at once, hangs, or reads another format is found
//! out while the guest runs.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};

use super::child::Start;
use super::command::ExecCommand;
use crate::cpr::Mode;
use crate::cpr::error::{HandoverError, InPhase};
use crate::cpr::observer::Observer;
use crate::cpr::report::{Phase, Stopwatch};
use crate::cpr::transfer::channel::Channel;
use crate::cpr::transfer::source::{self, Limits, Terms};
use crate::machine::Machine;

/// How much of what the binary wrote to its standard error goes into the message.
const LAST_WORDS: u64 = 512;

/// Asks `command` whether it could take `machine` over.
pub fn probe(
    machine: &Machine,
    command: &ExecCommand,
    limits: Limits,
    cancel: OwnedFd,
    observer: &dyn Observer,
    watch: &mut Stopwatch,
) -> Result<(), HandoverError> {
    observer.phase(Phase::Connect);
    let errors = memfd::MemfdOptions::new().create("probe.stderr").in_phase(Phase::Connect)?.into_file();
    let (ours, theirs) = UnixStream::pair().in_phase(Phase::Connect)?;
    let mut child = start(command, theirs, &errors)?;
    watch.lap(Phase::Connect.name());
    let terms = Terms { mode: Mode::CprExec, probe: true, limits };
    let channel = Channel::new(ours, Some(cancel)).in_phase(Phase::Connect)?;
    let asked = source::prepare(machine, channel, None, terms, &mut |_, _| Ok(()), observer, watch).map(drop);
    let exit = end(&mut child);
    asked.map_err(|error| HandoverError {
        why: format!(
            "asking {} whether it could: {}{exit}{}",
            command.program().display(),
            error.why,
            said(errors)
        ),
        ..error
    })
}

fn start(command: &ExecCommand, channel: UnixStream, errors: &File) -> Result<Child, HandoverError> {
    let program = command.program();
    let starting = |error: std::io::Error| {
        HandoverError::new(Phase::Connect, format!("starting {}: {error}", program.display()))
    };
    let channel = OwnedFd::from(channel);
    let start = Start {
        program,
        leading: command.leading_arguments(),
        from: format!("fd:{}", channel.as_raw_fd()),
        inherited: &[&channel],
        errors: Stdio::from(errors.try_clone().map_err(starting)?),
    };
    start.spawn().map_err(starting)
}

/// Ends the child and says how it ended, if it did by itself.
fn end(child: &mut Child) -> String {
    let status = child.try_wait();
    // Killing one that has ended already changes nothing, and waiting for it cannot block.
    let killed = child.kill().and_then(|()| child.wait());
    match (status, killed) {
        (Ok(Some(status)), _) => format!("; it ended with {status}"),
        (_, Err(error)) => format!("; ending it: {error}"),
        _ => String::new(),
    }
}

/// The last of what the child wrote to its standard error.
fn said(mut errors: File) -> String {
    let mut words = Vec::new();
    let length = errors.seek(SeekFrom::End(0)).unwrap_or(0);
    let read = errors
        .seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS)))
        .and_then(|_| errors.as_fd().try_clone_to_owned())
        .and_then(|fd| File::from(fd).take(LAST_WORDS).read_to_end(&mut words));
    match (read, String::from_utf8_lossy(&words).trim()) {
        (Ok(_), text) if !text.is_empty() => format!("; it said: {}", text.replace('\n', " / ")),
        _ => String::new(),
    }
}
