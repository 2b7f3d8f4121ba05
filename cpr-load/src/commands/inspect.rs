//! `inspect`.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use vmm_core::cpr::format;
use vmm_core::cpr::reboot::file;

use crate::flags::Inspect;

/// Shows what a file holds, as far as it can be read.
pub fn inspect(inspect: &Inspect) -> anyhow::Result<ExitCode> {
    let bytes = file::read_any(&inspect.file)?;
    let inspection = format::inspect(&bytes, &vmm_core::machine::readable_versions());
    let mut out = std::io::stdout().lock();
    let written = if inspect.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&inspection)?)
    } else {
        write!(out, "{inspection}")
    };
    match written {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        written => written.context("writing to standard output").map(|()| ExitCode::SUCCESS),
    }
}
