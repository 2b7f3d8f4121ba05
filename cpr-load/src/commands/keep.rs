//! `keep`.

use std::process::ExitCode;

use anyhow::Context;
use vmm_core::cpr::liveupdate::keeper::{self, Numbers};
use vmm_core::priority;

/// Keeps a saved guest until somebody else has it.
pub fn keep(guest: &str, numbers: Numbers) -> anyhow::Result<ExitCode> {
    priority::as_usual();
    keeper::ignore_signals().and_then(|()| keeper::serve(guest, numbers)).context("keeping a saved guest")?;
    Ok(ExitCode::SUCCESS)
}
