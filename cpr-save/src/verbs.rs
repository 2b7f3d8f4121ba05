//! The verbs that are one command each.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use serde::Deserialize;
use serde_json::{Value, json};
use vmm_core::monitor::client::ClientError;
use vmm_core::monitor::{HandoverReport, MigrationStatus, RunState};

use crate::exit::Failure;
use crate::guest::Guest;
use crate::handover;
use crate::progress::Progress;

/// `status`: how the guest is, and how its last handover went.
pub fn status(vm: &Path, progress: &Progress) -> Result<(), Failure> {
    let mut guest = Guest::connect(vm)?;
    let facts = facts(&mut guest).map_err(|error| Failure::Unknown(error.into()))?;
    let mut text = format!(
        "{} ({}): {}, {} vCPUs, {}",
        facts["name"].as_str().unwrap_or("unnamed"),
        facts["uuid"].as_str().unwrap_or("no UUID"),
        facts["run-state"].as_str().unwrap_or_default(),
        facts["vcpus"],
        facts["vmm"].as_str().unwrap_or_default(),
    );
    if let Some(status) = facts["migration"]["status"].as_str() {
        text.extend(["\nlast handover: ", status]);
        if let Some(why) = facts["migration"]["error-desc"].as_str() {
            text.extend([": ", why]);
        } else if let Ok(report) = HandoverReport::deserialize(&facts["report"]) {
            text.push_str(&handover::steps(&report));
        }
    }
    progress.done(&text, &facts);
    Ok(())
}

fn facts(guest: &mut Guest) -> Result<Value, ClientError> {
    let version: Value = guest.query("query-version")?;
    let number = |part: &str| version["qemu"][part].as_u64().unwrap_or(0);
    let vmm = if guest.has_cpr_commands {
        version["package"].as_str().unwrap_or("cpr").to_owned()
    } else {
        format!("qemu {}.{}.{}", number("major"), number("minor"), number("micro"))
    };
    Ok(json!({
        "name": guest.query::<Value>("query-name")?["name"],
        "uuid": guest.query::<Value>("query-uuid")?["UUID"],
        "run-state": guest.run_state()?,
        "vcpus": guest.threads()?.len(),
        "vmm": vmm,
        "migration": guest.migration()?,
        "report": guest.report()?,
    }))
}

/// `stop`: stops the vCPUs.
pub fn stop(vm: &Path, progress: &Progress) -> Result<(), Failure> {
    act(vm, "stop", progress)
}

/// `cont`: lets the vCPUs go on.
pub fn cont(vm: &Path, progress: &Progress) -> Result<(), Failure> {
    act(vm, "cont", progress)
}

fn act(vm: &Path, command: &str, progress: &Progress) -> Result<(), Failure> {
    let mut guest = Guest::connect(vm)?;
    if let Err(error) = guest.execute(command, &json!({})) {
        return Err(guest.failure(error));
    }
    let state = guest.run_state().map_err(|error| Failure::Unknown(error.into()))?;
    progress.done(&format!("the guest is {state}"), &json!({"run-state": state}));
    Ok(())
}

/// `cancel`: cancels a handover, and waits until it is known how it ended.
pub fn cancel(vm: &Path, progress: &Progress) -> Result<(), Failure> {
    let mut guest = Guest::connect(vm)?;
    if let Err(error) = guest.execute("migrate_cancel", &json!({})) {
        return Err(guest.failure(error));
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let info = guest.migration().map_err(|error| Failure::Unknown(error.into()))?;
        let state = guest.run_state().map_err(|error| Failure::Unknown(error.into()))?;
        let facts = json!({"run-state": state, "migration": info});
        match info.status {
            MigrationStatus::Cancelled => progress.done(&format!("cancelled; the guest is {state}"), &facts),
            MigrationStatus::Failed => {
                progress.done(&format!("the handover had failed; the guest is {state}"), &facts);
            }
            MigrationStatus::Completed if state == RunState::Postmigrate => {
                return Err(Failure::Unknown(anyhow!("too late: the guest has been handed over")));
            }
            // Completed, and the guest is here: that was when it came in.
            MigrationStatus::None | MigrationStatus::Completed => {
                progress.done(&format!("no handover was under way; the guest is {state}"), &facts);
            }
            _ if Instant::now() > deadline => {
                return Err(Failure::Unknown(anyhow!("still {} after 30 s", info.status)));
            }
            _ => {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
        }
        return Ok(());
    }
}

/// `quit`: ends the VMM.
pub fn quit(vm: &Path, progress: &Progress) -> Result<(), Failure> {
    let mut guest = Guest::connect(vm)?;
    guest.quit().map_err(Failure::Unknown)?;
    progress.done("the VMM has ended", &json!({}));
    Ok(())
}
