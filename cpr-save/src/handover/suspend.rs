//! Suspends a guest before it is saved, and wakes it where it is not saved after all.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use serde::Deserialize;
use serde_json::json;
use vmm_core::monitor::RunState;

use super::agent::Agent;
use crate::exit::Failure;
use crate::guest::Guest;
use crate::progress::Progress;
use crate::signals::Signals;

/// How long an agent may take to answer at all.
const ANSWERS: Duration = Duration::from_secs(10);

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
    match falls_asleep(guest, within, signals) {
        Ok(()) => Ok(true),
        Err(error) => {
            let state = guest.run_state();
            // It may have fallen asleep while we gave it up.
            if matches!(state, Ok(RunState::Suspended)) {
                return if signals.came() { Err(wake(guest, error)) } else { Ok(true) };
            }
            Err(match state {
                Ok(state) => Failure::InSource { state, error },
                Err(unknown) => Failure::Unknown(error.context(unknown)),
            })
        }
    }
}

fn falls_asleep(guest: &mut Guest, within: Duration, signals: &Signals) -> anyhow::Result<()> {
    let deadline = Instant::now() + within;
    let answer = guest.execute("x-cpr-agent", &json!({})).context("looking for the guest's agent")?;
    let socket = PathBuf::deserialize(&answer["socket"]).context("x-cpr-agent")?;
    let mut agent = Agent::find(&socket, deadline.min(Instant::now() + ANSWERS))?;
    agent.suspend()?;
    while Instant::now() < deadline {
        if guest.run_state()? == RunState::Suspended {
            return Ok(());
        }
        if let Some(why) = agent.refusal() {
            return Err(anyhow!("the guest's agent will not suspend it: {why}"));
        }
        if signals.arrived() {
            return Err(anyhow!(
                "interrupted by a signal while the guest was to suspend; should it sleep yet, system_wakeup wakes it"
            ));
        }
    }
    Err(anyhow!(
        "the guest did not suspend within {} s, and goes on: give it more (--suspend=SECONDS), or look in its log for what keeps it \
         from sleeping; should it sleep yet, system_wakeup wakes it",
        within.as_secs()
    ))
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
    match guest.run_state() {
        Ok(state) => Failure::InSource { state, error },
        Err(unknown) => Failure::Unknown(error.context(unknown)),
    }
}
