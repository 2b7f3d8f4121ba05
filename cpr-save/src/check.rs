//! What stands in the way of a handover.

use std::path::Path;

use anyhow::anyhow;
use serde::Deserialize;
use serde_json::json;
use vmm_core::cpr::Mode;
use vmm_core::cpr::blockers::Blocker;
use vmm_core::monitor::client::ClientError;
use vmm_core::monitor::{Channels, RunState};

use crate::exit::Failure;
use crate::flags::Plan;
use crate::guest::Guest;
use crate::progress::Progress;

/// `check`: says what stands in the way.
pub fn run(vm: &Path, plan: &Plan, progress: &Progress) -> Result<(), Failure> {
    let mut guest = Guest::connect(vm)?;
    refuse(&mut guest, plan)?;
    progress.done(&format!("nothing stands in the way of {}", plan.mode), &json!({"mode": plan.mode}));
    Ok(())
}

/// Fails with every blocker, if there are any. Touches nothing.
pub fn refuse(guest: &mut Guest, plan: &Plan) -> Result<(), Failure> {
    let blockers = find(guest, plan).map_err(|error| match error.command_error() {
        Some(_) => Failure::refused(error),
        None => Failure::Unknown(error.into()),
    })?;
    if blockers.is_empty() {
        return Ok(());
    }
    let error = anyhow!("{} is blocked", plan.mode);
    Err(Failure::Refused { blockers, error })
}

fn find(guest: &mut Guest, plan: &Plan) -> Result<Vec<Blocker>, ClientError> {
    let mut blockers = Vec::new();
    if guest.has_cpr_commands {
        let mut arguments = json!({"mode": plan.mode});
        if plan.channels != Channels::default() {
            arguments["channels"] = plan.channels.to_json();
        }
        if !plan.exec_command.is_empty() {
            arguments["cpr-exec-command"] = json!(plan.exec_command);
        }
        if plan.copy_ram {
            arguments["copy-ram"] = json!(true);
        }
        if plan.kexec {
            arguments["kexec"] = json!(true);
        }
        if plan.suspend.is_some() {
            arguments["suspend"] = json!(true);
        }
        let answer = guest.execute("x-cpr-check", &arguments)?;
        blockers = Vec::<Blocker>::deserialize(&answer["blockers"])
            .map_err(|error| ClientError::Protocol(format!("x-cpr-check: {error}")))?;
    } else {
        let reasons = guest.migration()?.blocked_reasons;
        blockers.extend(reasons.into_iter().map(|reason| Blocker::new("qemu", reason)));
        blockers.extend(without_cpr_commands(plan));
    }
    let state = guest.run_state()?;
    if matches!(state, RunState::Inmigrate | RunState::Postmigrate) && blockers.is_empty() {
        blockers.push(Blocker::new("guest", format!("it is not in this VMM (its run state is {state})")));
    }
    Ok(blockers)
}

/// What QEMU needs and `cpr-load` does not.
fn without_cpr_commands(plan: &Plan) -> Option<Blocker> {
    match plan.mode {
        Mode::CprTransfer if plan.channels.main.is_some() && plan.channels.main == plan.channels.cpr => {
            Some(Blocker::new(
                "qemu",
                "it needs a socket of its own for the main channel: give --main unix:PATH too",
            ))
        }
        Mode::CprExec if plan.exec_command.is_empty() || plan.channels.main.is_none() => Some(Blocker::new(
            "qemu",
            "it needs a file for the state and the whole command: give --to file:PATH and -- COMMAND …",
        )),
        _ if plan.suspend.is_some() => Some(Blocker::new(
            "qemu",
            "it does not say where its guest's agent is: suspend the guest first, and leave out --suspend",
        )),
        _ if plan.kexec => Some(Blocker::new(
            "qemu",
            "it does not say whether its RAM outlives a kexec: leave out --kexec if it does",
        )),
        _ => None,
    }
}
