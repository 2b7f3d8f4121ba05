//! Sides of a transfer that fail.
//!
//! 1. A target that fails before it has claimed the guest, at each message in turn, leaves it where it was ([`each`]).
//! 2. A source that dies when it has sent the state leaves it to the target ([`orphan`]).

use std::fs;
use std::path::Path;
use std::process::Child;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use vmm_core::cpr::transfer::message::{Descriptors, Machine, Message, Ready, State, Welcome};

use super::commands::{WITHIN, is_in_source, save, status, unix, until};
use super::owner::Owner;
use super::paths;
use super::steps::exit;
use crate::harness::proxy::{Action, Crossing, Moment, Proxy};

/// The messages until the target has the guest's state, by their kinds and names.
const MESSAGES: [(u16, &str); 5] = [
    (Welcome::KIND, Welcome::NAME),
    (Descriptors::KIND, Descriptors::NAME),
    (Machine::KIND, Machine::NAME),
    (Ready::KIND, Ready::NAME),
    (State::KIND, State::NAME),
];
/// How long the source waits for a target before the guest stops, in seconds, and after that, in milliseconds.
const BOUNDS: [&str; 2] = ["--timeout=10", "--downtime-limit=1000"];

/// What becomes of the target when a message is about to cross.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The channel to it closes.
    Close,
    /// It dies.
    Die,
    /// It does nothing more, until the source has given it up; then it goes on, too late.
    Sleep,
}

/// Breaks a transfer at each message in each way; says for how long the guest may have stood still.
pub fn each(owner: &mut Owner) -> Result<Duration> {
    let mut longest = Duration::ZERO;
    for (kind, name) in MESSAGES {
        for fault in [Fault::Close, Fault::Die, Fault::Sleep] {
            let stood = one(owner, kind, fault).with_context(|| format!("{fault:?} at {name}"))?;
            longest = longest.max(stood);
        }
    }
    Ok(longest)
}

/// Closes the channel before the state crosses; says how long the handover took.
pub fn roll_back(owner: &mut Owner) -> Result<Duration> {
    let since = Instant::now();
    one(owner, State::KIND, Fault::Close).map(|_| since.elapsed())
}

/// Kills the source when the target has all of the state; says for how long the guest may have stood still.
pub fn orphan(owner: &mut Owner) -> Result<Duration> {
    let name = owner.name;
    let (target, incoming) = owner.target("lost")?;
    let source = owner.pid();
    let done = transfer(name, &incoming, move |crossing| {
        let due = crossing.frame.kind == State::KIND && crossing.moment == Moment::After;
        due.then(|| signal(source, Signal::SIGKILL))
    })?;
    owner.inherit(target).with_context(|| format!("cpr-save said {:?}", done.said))?;
    let running = |status: &Value| status["run-state"] == "running";
    let found = until("the target to have the guest", || Ok(status(name).ok().filter(running)));
    found.with_context(|| format!("cpr-save said {:?}", done.said))?;
    let since = done.since.context("the state did not cross")?;
    Ok(since.elapsed())
}

/// What came of a transfer that was interfered with.
struct Done {
    /// When it was.
    since: Option<Instant>,
    /// What `cpr-save` said if it failed.
    said: Option<String>,
}

/// Transfers a guest over a proxy that does something once.
fn transfer(
    name: &str,
    target: &Path,
    mut interfere: impl FnMut(&Crossing) -> Option<Action> + Send + 'static,
) -> Result<Done> {
    let between = paths::meeting(name, "between");
    let when = Arc::new(Mutex::new(None));
    let then = Arc::clone(&when);
    let proxy = Proxy::start(between.clone(), target, move |crossing| {
        let mut when = then.lock().unwrap_or_else(PoisonError::into_inner);
        let action = if when.is_none() { interfere(crossing) } else { None };
        if action.is_some() {
            *when = Some(Instant::now());
        }
        action.unwrap_or(Action::Pass)
    })?;
    let done = save(&[&["transfer", name, "--to", &unix(&between)][..], &BOUNDS[..]].concat());
    drop(proxy);
    fs::remove_file(&between)?;
    let since = *when.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Done { since, said: done.err().map(|error| format!("{error:#}")) })
}

/// Signals a process, and lets the message pass.
fn signal(process: u32, signal: Signal) -> Action {
    let _ = kill(Pid::from_raw(process.cast_signed()), signal);
    Action::Pass
}

/// Says how long `cpr-save` went on after the fault.
fn one(owner: &mut Owner, kind: u16, fault: Fault) -> Result<Duration> {
    let name = owner.name;
    let (mut target, incoming) = owner.target("lost")?;
    let pid = target.id();
    let done = transfer(name, &incoming, move |crossing| {
        let due = crossing.frame.kind == kind && crossing.moment == Moment::Before;
        due.then(|| match fault {
            Fault::Close => Action::Close,
            Fault::Die => signal(pid, Signal::SIGKILL),
            Fault::Sleep => signal(pid, Signal::SIGSTOP),
        })
    })?;
    let stood = done.since.map(|since| since.elapsed());
    if fault == Fault::Sleep {
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGCONT).context("waking the target that slept")?;
    }
    let (ended, said) = (ended(&mut target)?, done.said.unwrap_or_default());
    ensure!(ended, "the target took the guest, while the source said: {said}");
    ensure!(is_in_source(&said), "the source said: {said:?}");
    ensure!(status(name)?["run-state"] == "running", "the guest does not run: {}", status(name)?);
    stood.with_context(|| format!("the transfer did not come to it: {said}"))
}

/// Whether the target has ended, and not in order.
fn ended(target: &mut Child) -> Result<bool> {
    if let Some(status) = exit(target, WITHIN)? {
        return Ok(!status.success());
    }
    target.kill()?;
    target.wait()?;
    Ok(false)
}
