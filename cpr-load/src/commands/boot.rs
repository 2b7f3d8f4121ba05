//! `boot`.

use std::process::ExitCode;

use vmm_core::cpr::reboot::waiting;
use vmm_core::machine::Waiting;
use vmm_core::owner::{Options, Owner};

use super::ended;
use crate::flags::Boot;

/// Boots a guest and serves it to its end.
pub fn boot(boot: Boot) -> anyhow::Result<ExitCode> {
    let waiting = if boot.discard_saved {
        waiting::give_up(&boot.config.name, None)?;
        Waiting::Discarded
    } else {
        Waiting::Kept
    };
    let options = Options { monitor: boot.monitor, paused: boot.paused, waiting, ..Options::default() };
    Ok(ended(Owner::new(options)?.boot(boot.config)?))
}
