//! `start`.

use std::process::ExitCode;

use anyhow::Context;
use vmm_core::cpr::reboot::waiting;
use vmm_core::owner::Origin;

use super::{boot, resume};
use crate::flags::{Resume, Start};

/// Lets a guest go on that was saved and waits; boots it where none does. What waits and cannot be loaded is an error, never a boot.
pub fn start(start: Start) -> anyhow::Result<ExitCode> {
    let Start { boot: guest, saved } = start;
    let name = &guest.config.name;
    if guest.discard_saved {
        waiting::give_up(name, Some(&saved))?;
    } else if let Some(place) = waiting::find(name, &saved).with_context(|| unknown(name))? {
        tracing::info!("guest '{name}' was saved and waits in {place}");
        let from = Origin::Saved(place);
        return resume(Resume { from, set: Vec::new(), monitor: guest.monitor, paused: guest.paused });
    }
    tracing::info!("no saved guest '{name}' waits: it is booted");
    boot(guest)
}

fn unknown(name: &str) -> String {
    format!(
        "guest '{name}' is not booted, for a saved one may wait: see to what follows, or give that up with --discard-saved"
    )
}
