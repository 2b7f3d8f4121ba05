//! `inspect`.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use vmm_core::cpr::format;
use vmm_core::cpr::reboot::copy::Layout;

use crate::flags::Inspect;

/// Reads what can be read of any file, and says what is wrong with it around the state; only state may be shown of it, so there is
/// nothing to be careful about but its size.
fn read(path: &Path) -> anyhow::Result<(Vec<u8>, Option<String>)> {
    let doing = || format!("reading {}", path.display());
    let mut bytes = Vec::new();
    let mut file = File::open(path).with_context(doing)?;
    let length = file.metadata().with_context(doing)?.len();
    let mut most = format::MAX_STATE as u64 + 1;
    let layout = Layout::of(&file, length);
    // Behind RAM that was copied.
    if let Ok(Layout { state, chunks: Some(_) }) = &layout {
        file.seek(SeekFrom::Start(state.start)).with_context(doing)?;
        most = most.min(state.end - state.start);
    }
    file.take(most).read_to_end(&mut bytes).with_context(doing)?;
    Ok((bytes, layout.err().map(|error| error.to_string())))
}

/// Shows what a file holds, as far as it can be read.
pub fn inspect(inspect: &Inspect) -> anyhow::Result<ExitCode> {
    let (bytes, problem) = read(&inspect.file)?;
    let mut inspection = format::inspect(&bytes, &vmm_core::machine::readable_versions());
    inspection.problem = problem.or(inspection.problem);
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
