//! `start`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use vmm_core::cpr::reboot::{Place, waiting};
use vmm_core::monitor::{EarlyInfo, paths};
use vmm_core::owner::{Origin, early};
use vmm_core::priority::Precedence;

use super::{boot, resume};
use crate::flags::{Boot, Resume, Start};

/// Takes over a guest that was resumed early; lets one go on that was saved and waits; boots it where neither is so. What waits and cannot
/// be loaded is an error, never a boot.
pub fn start(start: Start) -> anyhow::Result<ExitCode> {
    let Start { boot: guest, saved, lazy } = start;
    let name = &guest.config.name;
    let early = resumed_early(name)?;
    if guest.discard_saved {
        if let Some(EarlyInfo { pid, .. }) = early {
            bail!(
                "guest '{name}' does not wait: it runs in process {pid}, which has resumed it early (cpr-save quit {name} ends it)"
            );
        }
        waiting::give_up(name, Some(&saved))?;
    } else if let Some(info) = early {
        return take_over(&guest, info);
    } else if let Some(place) = find(name, &saved)? {
        tracing::info!("guest '{name}' was saved and waits in {place}");
        let from = Origin::Saved(place);
        return go_on(from, guest.monitor, guest.paused, lazy);
    }
    tracing::info!("no saved guest '{name}' waits: it is booted");
    boot(guest)
}

/// Where a guest waits that was saved, if it does: to be found before what else the host does.
fn find(name: &str, saved: &Path) -> anyhow::Result<Option<Place>> {
    let _precedence = Precedence::take();
    waiting::find(name, saved).with_context(|| unknown(name))
}

/// Lets a guest go on that is somewhere, as it is.
fn go_on(from: Origin, monitor: Option<PathBuf>, paused: bool, lazy: bool) -> anyhow::Result<ExitCode> {
    resume(Resume { from, set: Vec::new(), monitor, paused, lazy, early: false })
}

/// The process that has resumed a guest early, if one has it: its monitor is called after the guest, whatever the unit's is to be.
fn resumed_early(name: &str) -> anyhow::Result<Option<EarlyInfo>> {
    let monitor = paths::socket_of(name);
    early::find(&monitor).with_context(|| {
        format!("asking whoever listens at {} whether it has resumed guest '{name}' early", monitor.display())
    })
}

/// Takes a guest over from the process that has resumed it early; its monitor comes along, unless there is to be another.
fn take_over(guest: &Boot, info: EarlyInfo) -> anyhow::Result<ExitCode> {
    let (name, pid, monitor) = (guest.config.name.clone(), info.pid, paths::socket_of(&guest.config.name));
    let own = guest.monitor.clone().filter(|own| *own != monitor);
    tracing::info!("guest '{name}' was resumed early: it is taken over from process {pid}");
    let from = Origin::Early(monitor.clone(), Box::new(info));
    go_on(from, own, guest.paused, false).with_context(|| match early::find(&monitor) {
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
