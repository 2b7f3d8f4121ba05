//! `boot`.

use std::process::ExitCode;

use crate::flags::Boot;

/// Stand-in.
pub fn boot(_boot: Boot) -> anyhow::Result<ExitCode> {
    anyhow::bail!("boot: not built in")
}
