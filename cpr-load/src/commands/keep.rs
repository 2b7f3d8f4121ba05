//! `keep`.

use std::process::ExitCode;

use anyhow::Context;
use vmm_core::cpr::liveupdate::keeper::{self, Numbers};

/// Keeps a saved guest until somebody else has it.
pub fn keep(numbers: &Numbers) -> anyhow::Result<ExitCode> {
    keeper::ignore_signals().and_then(|()| keeper::serve(numbers)).context("keeping a saved guest")?;
    Ok(ExitCode::SUCCESS)
}
