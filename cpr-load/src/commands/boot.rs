//! `boot`.

use std::process::ExitCode;

use vmm_core::owner::{Options, Owner};

use super::ended;
use crate::flags::Boot;

/// Boots a guest and serves it to its end.
pub fn boot(boot: Boot) -> anyhow::Result<ExitCode> {
    let options = Options { monitor: boot.monitor, paused: boot.paused, set: Vec::new() };
    Ok(ended(Owner::new(options)?.boot(boot.config)?))
}
