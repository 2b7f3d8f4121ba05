//! Suspends a guest before it is saved, and wakes it where it is not saved after all.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use serde::Deserialize;
use serde_json::json;
use vmm_core::monitor::RunState;
use vmm_core::monitor::client::ClientError;

use super::agent::Agent;
use crate::exit::Failure;
use crate::guest::Guest;
use crate::progress::Progress;
use crate::signals::Signals;

/// How long an agent may take to answer at all.
const ANSWERS: Duration = Duration::from_secs(10);
/// How long a guest may take to fall asleep after it was given up: its kernel waits for 20 s for its programs alone.
const ON_ITS_WAY: Duration = Duration::from_mins(5);

/// Has the guest's agent suspend it, and waits until it sleeps. `false` if it did already.
pub fn suspend(
    guest: &mut Guest,
    within: Duration,
    signals: &Signals,
    progress: &Progress,
) -> Result<bool, Failure> {
    let state = guest.run_state().map_err(Failure::refused)?;
    if state == RunState::Suspended {
        let text = "sleeps already, and sleeps on where it is loaded: system_wakeup wakes it";
        progress.note(text, &json!({"event": "asleep"}));
        return Ok(false);
    }
    progress.step("suspending the guest", &json!({"event": "suspending"}));
    let deadline = Instant::now() + within;
    let mut agent = ask(guest, deadline).map_err(|error| Failure::InSource { state, error })?;
    let asleep = agent.suspend().and_then(|()| falls_asleep(guest, &mut agent, deadline, signals));
    match asleep {
        Ok(true) => Ok(true),
        Ok(false) => Err(keep_awake(guest, late(within))),
        Err(error) => Err(keep_awake(guest, error)),
    }
}

/// Finds the guest's agent.
fn ask(guest: &mut Guest, deadline: Instant) -> anyhow::Result<Agent> {
    let answer = guest.execute("x-cpr-agent", &json!({})).context("looking for the guest's agent")?;
    let socket = PathBuf::deserialize(&answer["socket"]).context("x-cpr-agent")?;
    let agent = Agent::find(&socket, deadline.min(Instant::now() + ANSWERS))?;
    // It may sleep again, where an earlier try was given up. One of an older build sleeps whenever it wants to.
    match stay_awake(guest, Duration::ZERO) {
        Err(error) if error.command_error().is_none() => Err(error).context("letting the guest sleep"),
        _ => Ok(agent),
    }
}

/// Whether the guest sleeps before the deadline.
fn falls_asleep(
    guest: &mut Guest,
    agent: &mut Agent,
    deadline: Instant,
    signals: &Signals,
) -> anyhow::Result<bool> {
    while Instant::now() < deadline {
        if guest.run_state()? == RunState::Suspended {
            return Ok(true);
        }
        if let Some(why) = agent.refusal() {
            return Err(anyhow!("the guest's agent will not suspend it: {why}"));
        }
        if signals.arrived() {
            return Err(anyhow!("interrupted by a signal while the guest was to suspend"));
        }
    }
    // It may have fallen asleep in the last moment.
    Ok(guest.run_state()? == RunState::Suspended)
}

fn late(within: Duration) -> anyhow::Error {
    anyhow!(
        "the guest did not suspend within {} s, and goes on: give it more (--suspend=SECONDS), or look in its log for what keeps it \
         from sleeping; should it sleep in the next {} s, it is woken",
        within.as_secs(),
        ON_ITS_WAY.as_secs()
    )
}

fn stay_awake(guest: &mut Guest, time: Duration) -> Result<(), ClientError> {
    guest.execute("x-cpr-stay-awake", &json!({"seconds": time.as_secs()})).map(drop)
}

/// Has a guest go on that was asked to sleep, and may be on its way; gives the failure with how it is by now.
fn keep_awake(guest: &mut Guest, error: anyhow::Error) -> Failure {
    let error = match stay_awake(guest, ON_ITS_WAY) {
        Ok(()) => error,
        Err(asleep) => error.context(format!(
            "the guest was asked to suspend, and may sleep yet, when system_wakeup wakes it; to have that done failed: {asleep}"
        )),
    };
    in_source(guest, error)
}

/// Wakes a guest that was suspended and is still in the source; gives the failure with how the guest is by now.
pub fn undo(vm: &Path, failure: Failure) -> Failure {
    let asleep = "the guest was suspended for this; if it is in the source still, system_wakeup wakes it";
    let error = match failure {
        Failure::InSource { error, .. } | Failure::Refused { error, .. } => error,
        Failure::Unknown(error) => return Failure::Unknown(error.context(asleep)),
        several @ Failure::Several(_) => return several,
    };
    match Guest::connect(vm) {
        Ok(mut guest) => wake(&mut guest, error),
        Err(_) => Failure::Unknown(error.context(asleep)),
    }
}

/// Wakes a guest that is in the source; gives the failure with how it is by now.
fn wake(guest: &mut Guest, error: anyhow::Error) -> Failure {
    let woken = guest.execute("system_wakeup", &json!({}));
    let error = match woken {
        Ok(_) => error,
        Err(asleep) => {
            error.context(format!("the guest was suspended for this, and waking it failed: {asleep}"))
        }
    };
    in_source(guest, error)
}

/// A failure that leaves the guest in the source, with how it is by now.
fn in_source(guest: &mut Guest, error: anyhow::Error) -> Failure {
    match guest.run_state() {
        Ok(state) => Failure::InSource { state, error },
        Err(unknown) => Failure::Unknown(error.context(unknown)),
    }
}
