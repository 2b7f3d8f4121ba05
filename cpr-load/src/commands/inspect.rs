//! `inspect`.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use vmm_core::cpr::format;

use crate::flags::Inspect;

/// Reads what can be read of any file; only state may be shown of it, so there is nothing to be careful about but its size.
fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let doing = || format!("reading {}", path.display());
    let mut bytes = Vec::new();
    let file = File::open(path).with_context(doing)?;
    file.take(format::MAX_STATE as u64 + 1).read_to_end(&mut bytes).with_context(doing)?;
    Ok(bytes)
}

/// Shows what a file holds, as far as it can be read.
pub fn inspect(inspect: &Inspect) -> anyhow::Result<ExitCode> {
    let bytes = read(&inspect.file)?;
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
