//! A host in QEMU, watched from outside: what it prints, and the reports among it.

use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};

use super::inside::REPORT_MARK;
use super::qemu::Machine;

/// What a host's kernel is booted with.
///
/// A host that is kept waiting takes a wrong TSC rate at its start, and later for a fault of the TSC what is its own delay:
/// without the tolerance a guest's TSC may then stand still, and without `tsc=reliable` the host gives it up.
pub const CMDLINE: &str = "console=ttyS0 loglevel=6 panic=-1 kvm.tsc_tolerance_ppm=100000 tsc=reliable";

/// A host that runs. It does not outlive this.
pub struct Watched {
    qemu: Child,
    lines: Receiver<String>,
    started: Instant,
}

impl Watched {
    /// Starts it.
    pub fn start(machine: &Machine) -> Result<Self> {
        let mut qemu = machine.start()?;
        let output = qemu.stdout.take().context("QEMU has no standard output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { qemu, lines, started: Instant::now() })
    }

    /// Waits for the next report, and gives its JSON; what comes before it is said, with the time. An error: the host ended, or
    /// the deadline came.
    pub fn report(&self, deadline: Instant, say: impl Fn(&str)) -> Result<String, RecvTimeoutError> {
        loop {
            match self.next(deadline)? {
                Seen::Report(json) => return Ok(json),
                Seen::Line(line) => say(&line),
            }
        }
    }

    /// Waits for what it prints next.
    pub fn next(&self, deadline: Instant) -> Result<Seen, RecvTimeoutError> {
        let line = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now()))?;
        let line = line.trim_end();
        Ok(match line.strip_prefix(REPORT_MARK) {
            Some(json) => Seen::Report(json.to_owned()),
            None => Seen::Line(format!("{:6.1} s | {line}", self.started.elapsed().as_secs_f64())),
        })
    }
}

/// What a host prints.
pub enum Seen {
    /// The JSON of a report.
    Report(String),
    /// Anything else, with the time.
    Line(String),
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
