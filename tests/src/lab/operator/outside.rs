//! A host with systemd, from outside: it is started again when it has ended, until its operator is done.

use std::path::Path;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::POWER_LOSS;
use crate::lab::qemu::Machine;
use crate::lab::report::Report;
use crate::lab::watch::{Seen, Watched};

/// Runs a host until its operator's report, starting it again as often as it is to end; its console is kept in a file.
pub fn run(machine: &Machine<'_>, starts: usize, deadline: Instant, console: &Path) -> Result<Report> {
    for _ in 0..=starts {
        let watched = Watched::start(machine)?;
        let ending = loop {
            match watched.next(deadline) {
                Ok(Seen::Report(json)) => {
                    return serde_json::from_str(&json).context("reading the report");
                }
                Ok(Seen::Line(line)) if line.ends_with(POWER_LOSS) => break "its power is cut",
                Ok(Seen::Line(line)) => println!("{line}"),
                Err(RecvTimeoutError::Disconnected) => break "it has ended",
                Err(RecvTimeoutError::Timeout) => {
                    bail!("the bound was reached; the host's console is in {}", console.display())
                }
            }
        };
        drop(watched);
        println!("the host: {ending}");
    }
    bail!("the host ended without a report; its console is in {}", console.display())
}
