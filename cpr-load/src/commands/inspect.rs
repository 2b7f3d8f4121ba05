//! `inspect`.

use std::process::ExitCode;

use crate::flags::Inspect;

/// Stand-in.
pub fn inspect(_inspect: &Inspect) -> anyhow::Result<ExitCode> {
    anyhow::bail!("inspect: not built in")
}
