//! `resume`.

use std::process::ExitCode;

use crate::flags::Resume;

/// Stand-in.
pub fn resume(_resume: Resume) -> anyhow::Result<ExitCode> {
    anyhow::bail!("resume: not built in")
}
