//! `start`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use vmm_core::cpr::reboot::waiting;
use vmm_core::monitor::{EarlyInfo, paths};
use vmm_core::owner::{Origin, early};

use super::{boot, resume};
use crate::flags::{Boot, Resume, Start};

/// Takes over a guest that was resumed early; lets one go on that was saved and waits; boots it where neither is so. What waits and cannot
/// be loaded is an error, never a boot.
pub fn start(start: Start) -> anyhow::Result<ExitCode> {
    let Start { boot: guest, saved } = start;
    let name = &guest.config.name;
    if guest.discard_saved {
        waiting::give_up(name, Some(&saved))?;
    } else if let Some(info) = resumed_early(&guest)? {
        return take_over(&guest, info);
    } else if let Some(place) = waiting::find(name, &saved).with_context(|| unknown(name))? {
        tracing::info!("guest '{name}' was saved and waits in {place}");
        let from = Origin::Saved(place);
        return resume(Resume {
            from,
            set: Vec::new(),
            monitor: guest.monitor,
            paused: guest.paused,
            early: false,
        });
    }
    tracing::info!("no saved guest '{name}' waits: it is booted");
    boot(guest)
}

fn monitor_of(guest: &Boot) -> PathBuf {
    guest.monitor.clone().unwrap_or_else(|| paths::socket_of(&guest.config.name))
}

/// The process that has resumed a guest early, if one has it.
fn resumed_early(guest: &Boot) -> anyhow::Result<Option<EarlyInfo>> {
    let monitor = monitor_of(guest);
    early::find(&monitor).with_context(|| {
        format!(
            "asking whoever listens at {} whether it has resumed guest '{}' early",
            monitor.display(),
            guest.config.name
        )
    })
}

/// Takes a guest over from the process that has resumed it early; its monitor comes along.
fn take_over(guest: &Boot, info: EarlyInfo) -> anyhow::Result<ExitCode> {
    let (name, pid, monitor) = (guest.config.name.clone(), info.pid, monitor_of(guest));
    tracing::info!("guest '{name}' was resumed early: it is taken over from process {pid}");
    let from = Origin::Early(monitor.clone(), Box::new(info));
    let taken = resume(Resume { from, set: Vec::new(), monitor: None, paused: guest.paused, early: false });
    taken.with_context(|| match early::find(&monitor) {
        Ok(Some(EarlyInfo { pid: found, .. })) if found == pid => {
            format!("guest '{name}' goes on where it was, in process {pid}, and can be taken over again")
        }
        _ => format!("process {pid}, which had guest '{name}', does not answer any more"),
    })
}

fn unknown(name: &str) -> String {
    format!(
        "guest '{name}' is not booted, for a saved one may wait: see to what follows, or give that up with --discard-saved"
    )
}
