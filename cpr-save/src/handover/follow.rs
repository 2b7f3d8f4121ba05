//! Watches a handover until it has ended.

use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use serde::Deserialize;
use serde_json::json;
use vmm_core::cpr::Mode;
use vmm_core::monitor::client::{ClientError, ReceivedEvent};
use vmm_core::monitor::{MigrationInfo, MigrationStatus, RamProgress};

use crate::flags::Plan;
use crate::guest::Guest;
use crate::progress::Progress;
use crate::signals::Signals;

/// How often signals are looked for.
const SLICE: Duration = Duration::from_millis(50);

/// How long without an event until the VMM is asked.
const QUIET: Duration = Duration::from_millis(500);

/// How much longer than its bounds a handover may take before it is cancelled from here, if the VMM knows them too.
/// Also how long cancelling may take.
const GRACE: Duration = Duration::from_secs(10);

/// How a handover ended.
pub struct End {
    pub status: MigrationStatus,
    /// Why, where it failed.
    pub why: Option<String>,
    /// What `query-migrate` said last.
    pub info: Option<MigrationInfo>,
}

impl End {
    /// It went well, and nobody was there to say more.
    pub fn done() -> Self {
        Self { status: MigrationStatus::Completed, why: None, info: None }
    }
}

/// Follows events, and asks where none come, until the handover has ended. An error means that the connection is lost.
pub fn to_the_end(
    guest: &mut Guest,
    plan: &Plan,
    signals: &Signals,
    progress: &Progress,
) -> anyhow::Result<End> {
    let stopped = Duration::from_millis(plan.downtime_limit.unwrap_or(5_000));
    let grace = if guest.has_cpr_commands { stopped + GRACE } else { Duration::ZERO };
    // An exec prepares three processes, each within the bound.
    let prepares = if plan.mode == Mode::CprExec { 3 } else { 1 };
    let mut deadline = Instant::now() + plan.timeout * prepares + grace;
    let mut ask = Instant::now() + QUIET;
    let mut cancelled: Option<String> = None;
    let mut seen = None;
    loop {
        match guest.client.next_event(Instant::now() + SLICE)? {
            Some(event) => {
                ask = Instant::now() + QUIET;
                if show(&event, progress) {
                    ask = Instant::now();
                }
            }
            None if signals.arrived() => {
                if cancelled.is_some() {
                    return Err(anyhow!("interrupted while cancelling"));
                }
                progress.step("cancelling", &json!({"event": "cancelling"}));
                cancelled = Some("interrupted by a signal".into());
                cancel(guest)?;
                deadline = Instant::now() + GRACE;
            }
            // Nobody knows how long RAM takes to be copied, or preserved: a signal ends it.
            None if Instant::now() > deadline && (cancelled.is_some() || !plan.moves_ram()) => {
                if cancelled.is_some() {
                    return Err(anyhow!("the handover could not be cancelled"));
                }
                let bound = plan.timeout.as_secs();
                cancelled = Some(format!("not done within its bounds ({bound} s to prepare)"));
                progress.step("out of time, cancelling", &json!({"event": "cancelling"}));
                cancel(guest)?;
                deadline = Instant::now() + GRACE;
            }
            None => {}
        }
        if Instant::now() < ask {
            continue;
        }
        ask = Instant::now() + QUIET;
        let info = match guest.migration() {
            // A VMM that executes itself is silent for a while.
            Err(ClientError::TimedOut(_)) => continue,
            info => info?,
        };
        if seen != Some(info.status) {
            seen = Some(info.status);
            tracing::debug!(status = %info.status, "handover");
        }
        if let Some(RamProgress { transferred, total, .. }) = info.ram
            && !info.status.is_final()
        {
            let what = match info.status {
                // It has not begun: a guest that was loaded lazily is not all there yet.
                MigrationStatus::Setup => "waiting for RAM",
                _ => "copying RAM",
            };
            progress.amount(what, transferred, total);
        }
        if info.status.is_final() {
            let why = info.error_desc.clone().or(cancelled);
            return Ok(End { status: info.status, why, info: Some(info) });
        }
    }
}

fn cancel(guest: &mut Guest) -> anyhow::Result<()> {
    match guest.execute("migrate_cancel", &json!({})) {
        Err(error) if error.command_error().is_none() => Err(error).context("cancelling"),
        // Refused: there is nothing to cancel any more, and the next question says how it ended.
        _ => Ok(()),
    }
}

/// Shows an event; says whether it may be the last.
fn show(event: &ReceivedEvent, progress: &Progress) -> bool {
    let facts = json!({"event": event.name, "data": event.data, "at-us": event.at_us});
    match event.name.as_str() {
        "X_CPR_PHASE" => {
            let phase = event.data["phase"].as_str().unwrap_or_default();
            progress.step(phase, &facts);
            false
        }
        "MIGRATION" => {
            let status = &event.data["status"];
            progress.step(status.as_str().unwrap_or_default(), &facts);
            MigrationStatus::deserialize(status).is_ok_and(MigrationStatus::is_final)
        }
        "STOP" | "RESUME" | "SUSPEND" | "WAKEUP" | "SHUTDOWN" => {
            progress.step(&event.name.to_lowercase(), &facts);
            false
        }
        _ => false,
    }
}
