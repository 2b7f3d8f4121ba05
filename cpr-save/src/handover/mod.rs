//! A handover from the operator's side.
//!
//! 1. Nothing is touched before everything that can be known to fail has been asked for.
//! 2. Whatever happens on the way, the end says where the guest is; when that cannot be found out, it says so.
//! 3. The source is told to quit only once it has said that the guest is gone.
//!
//! 4. A guest that is suspended for it is woken where it goes, or here, if it does not go.
//!
//! `suspend` asks its `agent` for that, `follow` watches the handover, `locate` finds the guest when the connection is lost, `report` says what it came to.

mod agent;
mod follow;
mod locate;
mod report;
mod suspend;

use std::path::Path;

use anyhow::{Context, anyhow};
use serde_json::json;
use vmm_core::cpr::Mode;
use vmm_core::monitor::client::ClientError;
use vmm_core::monitor::{Channels, MigrationStatus};

pub use self::report::{Report, steps};

use crate::check;
use crate::exit::Failure;
use crate::flags::Plan;
use crate::guest::Guest;
use crate::progress::Progress;
use crate::signals::Signals;

/// `transfer`, `exec` and `reboot`.
pub fn run(vm: &Path, plan: &Plan, progress: &Progress) -> Result<(), Failure> {
    let signals = Signals::block().map_err(Failure::refused)?;
    let report = hand_over(vm, plan, &signals, progress)?;
    progress.done(&report.text(plan.mode), &report.json(plan.mode));
    Ok(())
}

/// Hands one guest over.
pub fn hand_over(vm: &Path, plan: &Plan, signals: &Signals, progress: &Progress) -> Result<Report, Failure> {
    let mut guest = Guest::connect(vm)?;
    check::refuse(&mut guest, plan)?;
    let suspended = match plan.suspend {
        Some(within) => suspend::suspend(&mut guest, within, signals, progress)?,
        None => false,
    };
    let done = give_away(vm, guest, plan, suspended, signals, progress);
    if suspended { done.map_err(|failure| suspend::undo(vm, failure)) } else { done }
}

/// Hands a guest over that nothing stands in the way of; one that was suspended for it is woken where it goes.
fn give_away(
    vm: &Path,
    mut guest: Guest,
    plan: &Plan,
    suspended: bool,
    signals: &Signals,
    progress: &Progress,
) -> Result<Report, Failure> {
    let threads = guest.threads().map_err(Failure::refused)?;
    prepare(&mut guest, plan).map_err(Failure::refused)?;
    progress.step("handing over", &json!({"event": "started", "mode": plan.mode}));
    if let Err(error) = start(&mut guest, plan, suspended) {
        return Err(match error.command_error() {
            Some(_) => Failure::refused(error),
            None => {
                locate::after_loss(vm, plan, guest.has_cpr_commands, &threads, error.into()).into_failure()
            }
        });
    }
    let end = match follow::to_the_end(&mut guest, plan, signals, progress) {
        Ok(end) => end,
        Err(error) => match locate::after_loss(vm, plan, guest.has_cpr_commands, &threads, error) {
            locate::Place::Moved(found) => {
                guest = found;
                follow::End::done()
            }
            place @ (locate::Place::Source(..) | locate::Place::Unknown(_)) => {
                return Err(place.into_failure());
            }
        },
    };
    if end.status != MigrationStatus::Completed {
        return Err(locate::after_failure(&mut guest, end.error(plan.mode)));
    }
    let report = report::of(&mut guest, plan.mode, end);
    let quits = !plan.keep && plan.mode != Mode::CprExec && report.from_source;
    if quits && let Err(error) = guest.quit() {
        // The guest is safe where it is now; what stays behind is an empty process.
        tracing::warn!("the source has given its guest away but did not quit: {error:#}");
    }
    Ok(report)
}

/// Sets mode, capabilities and parameters.
fn prepare(guest: &mut Guest, plan: &Plan) -> anyhow::Result<()> {
    let mut capabilities = vec![json!({"capability": "events", "state": true})];
    if plan.mode == Mode::CprReboot {
        // The other modes leave RAM in place without it, and a QEMU target refuses a source that has it set.
        capabilities.push(json!({"capability": "x-ignore-shared", "state": !plan.copy_ram}));
    }
    let capabilities = json!({"capabilities": capabilities});
    guest.execute("migrate-set-capabilities", &capabilities).context("setting capabilities")?;
    let mut parameters = json!({"mode": plan.mode});
    if let Some(limit) = plan.downtime_limit {
        parameters["downtime-limit"] = json!(limit);
    }
    if guest.has_cpr_commands {
        parameters["x-cpr-prepare-timeout"] = json!(plan.timeout.as_millis() as u64);
    }
    if plan.mode == Mode::CprExec && (guest.has_cpr_commands || !plan.exec_command.is_empty()) {
        parameters["cpr-exec-command"] = json!(plan.exec_command);
    }
    guest.execute("migrate-set-parameters", &parameters).context("setting parameters")?;
    Ok(())
}

fn start(guest: &mut Guest, plan: &Plan, wake: bool) -> Result<(), ClientError> {
    let mut arguments = json!({});
    if wake {
        arguments["x-cpr-wake"] = json!(true);
    }
    if plan.channels != Channels::default() {
        arguments["channels"] = plan.channels.to_json();
    }
    guest.execute("migrate", &arguments).map(drop)
}

impl follow::End {
    fn error(&self, mode: Mode) -> anyhow::Error {
        match (&self.why, self.status) {
            (Some(why), _) => anyhow!("{mode} {}: {why}", self.status),
            (None, MigrationStatus::Cancelled) => anyhow!("{mode} cancelled"),
            (None, status) => anyhow!("{mode} {status}, and the VMM does not say why"),
        }
    }
}
