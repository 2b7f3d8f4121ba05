//! `resume`, `check` and `inspect`: where a guest comes from.

use std::path::PathBuf;

use anyhow::{Context, anyhow, bail, ensure};
use clap::Args;
use vmm_core::cpr::exec::command::Arrival;
use vmm_core::cpr::exec::stopover::Sockets;
use vmm_core::cpr::reboot::Place;
use vmm_core::monitor::{Address, Channels, Incoming};
use vmm_core::owner::Origin;

/// A guest that is to be taken over.
#[derive(Debug, PartialEq, Eq)]
pub struct Resume {
    /// Where from.
    pub from: Origin,
    /// `KEY=VALUE` of what differs here, in order (`MachineConfig::set`).
    pub set: Vec<String>,
    /// Where a monitor listens from the start; `None`: the guest brings its own.
    pub monitor: Option<PathBuf>,
    /// Whether the guest waits for `cont`, even if it ran.
    pub paused: bool,
    /// Whether it may run before all of its RAM is read from its file.
    pub lazy: bool,
    /// Whether it is resumed early, for its unit to take it over from here.
    pub early: bool,
}

/// A saved guest that is asked about.
#[derive(Debug, PartialEq, Eq)]
pub struct Check {
    /// Where it waits.
    pub place: Place,
    /// `KEY=VALUE` of what would differ here.
    pub set: Vec<String>,
    /// Whether the answer is JSON.
    pub json: bool,
}

/// A file that is shown.
#[derive(Debug, PartialEq, Eq)]
pub struct Inspect {
    /// The file.
    pub file: PathBuf,
    /// Whether the answer is JSON.
    pub json: bool,
}

#[derive(Args)]
pub(super) struct Lazy {
    /// Let a guest whose RAM is in its file run before all of that is read: what it touches is read first. What of it is damaged is found
    /// when the guest runs already, and ends it; `check` finds it before
    #[arg(long)]
    pub(super) lazy: bool,
}

#[derive(Args)]
pub(super) struct ResumeFlags {
    /// The socket to listen on for a process that hands over, the file to load, the guest that the kernel has kept, or `defer`: wait for
    /// migrate-incoming
    #[arg(long, value_name = "unix:PATH|file:PATH|luo:NAME|defer")]
    from: String,
    /// The socket for the state, where it is another one than that for descriptors
    #[arg(long, value_name = "unix:PATH")]
    main: Option<String>,
    /// What differs here: memory.path=PATH, memory.pmem=on, serial=…, cpu.mask=FEATURE,…, name=NAME, ID.path=PATH, ID.changed=accept
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Where a monitor listens from the start [default: the guest's own, once it is here]
    #[arg(long, value_name = "PATH")]
    monitor: Option<PathBuf>,
    /// Let the guest wait for `cont`, even if it ran
    #[arg(long)]
    paused: bool,
    #[command(flatten)]
    lazy: Lazy,
    /// The process is one of `early`'s
    #[arg(long, hide = true)]
    early: bool,
}

#[derive(Args)]
pub(super) struct CheckFlags {
    /// The file, or the guest that the kernel has kept
    #[arg(long, value_name = "file:PATH|luo:NAME")]
    from: String,
    /// What would differ here, as for resume
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(super) struct InspectFlags {
    /// The file
    file: PathBuf,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

impl ResumeFlags {
    pub(super) fn check(self) -> anyhow::Result<Resume> {
        let from = if self.from == "defer" {
            ensure!(
                self.main.is_none(),
                "--main does not go with --from defer: migrate-incoming names both channels"
            );
            ensure!(
                self.monitor.is_some(),
                "--from defer needs --monitor PATH, for migrate-incoming to come in"
            );
            Origin::Deferred
        } else if let Some(arrival) = self.from.strip_prefix("exec:") {
            let arrival = Arrival::parse(arrival);
            Origin::Exec(
                arrival
                    .ok_or_else(|| anyhow!("--from {}: expected exec:CHANNEL[,BACK,BINARY]", self.from))?,
            )
        } else if let Some(sockets) = self.from.strip_prefix("stopover:") {
            let sockets = Sockets::parse(sockets);
            Origin::Stopover(
                sockets.ok_or_else(|| anyhow!("--from {}: expected stopover:FROM,ONWARD,BACK", self.from))?,
            )
        } else if let Some(fd) = self.from.strip_prefix("fd:") {
            Origin::Connected(
                fd.parse().with_context(|| format!("--from {}: expected fd:NUMBER", self.from))?,
            )
        } else {
            let first = Address::from_uri(&self.from)?;
            let channels = match self.main {
                None => Channels { main: Some(first), cpr: None },
                Some(main) => Channels { main: Some(Address::from_uri(&main)?), cpr: Some(first) },
            };
            match channels.incoming()? {
                Incoming::Unix { cpr, main } => Origin::Listen(cpr, Some(main)),
                Incoming::Saved(place) => Origin::Saved(place),
            }
        };
        check_assignments(&self.set)?;
        Ok(Resume {
            from,
            set: self.set,
            monitor: self.monitor,
            paused: self.paused,
            lazy: self.lazy.lazy,
            early: self.early,
        })
    }
}

impl CheckFlags {
    pub(super) fn check(self) -> anyhow::Result<Check> {
        check_assignments(&self.set)?;
        let channels = Channels { main: Some(Address::from_uri(&self.from)?), cpr: None };
        match channels.incoming()? {
            Incoming::Saved(place) => Ok(Check { place, set: self.set, json: self.json }),
            Incoming::Unix { .. } => {
                bail!(
                    "--from {}: only a saved guest can be checked; expected file:PATH or luo:NAME",
                    self.from
                )
            }
        }
    }
}

impl InspectFlags {
    #[expect(clippy::unnecessary_wraps, reason = "every verb's flags are checked the same way")]
    pub(super) fn check(self) -> anyhow::Result<Inspect> {
        Ok(Inspect { file: self.file, json: self.json })
    }
}

/// Finds a missing `=` now; whether the key may be set is known once the guest is.
fn check_assignments(set: &[String]) -> anyhow::Result<()> {
    match set.iter().find(|assignment| !assignment.contains('=')) {
        Some(bad) => bail!("--set {bad}: expected KEY=VALUE"),
        None => Ok(()),
    }
}
