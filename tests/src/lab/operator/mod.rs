//! A host with systemd, whose guests are units: what its operator does, and what must become of the guests.
//!
//! 1. The first process of the RAM disk makes ready what a package would have installed, and gives the host to its own init ([`mod@enter`]).
//! 2. The operator is a service that is started before the guests and stopped after them; one operation comes after the other
//!    (`operations`), and what is done is written to a disk (`Progress`), for most of them end the host's kernel (`endings`).
//! 3. Each guest is followed over all that (`guest`): it goes on, or is booted anew, as the operation has it.
//! 4. Outside, the host is started again when it has ended itself, or was cut off its power ([`outside`]).

mod answer;
mod endings;
pub mod enter;
mod guest;
mod operations;
pub mod outside;
mod programs;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sys::signal::{SigHandler, Signal, signal};
use serde::{Deserialize, Serialize};

use self::answer::CountedOn;
use self::guest::{Followed, Seen};
use super::inside::REPORT_MARK;
use super::kexec::Rate;
use super::outage;
use super::paths::GUESTS;
use super::report::Report;
use super::scenario::Scenario;

/// Where the host's root has what belongs to the lab.
pub const LAB: &str = "/lab";
/// Where a disk of its own is mounted, which has the kernels that come next and what outlives one.
const KEPT: &str = "/var/lib/lab";
/// The line by which the host asks for its power to be cut.
pub const POWER_LOSS: &str = "@power-loss";

/// What an operator does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// `systemctl reload` of each guest: a new binary in the same process.
    Reload,
    /// A guest's process is killed.
    Crash,
    /// A guest's process is stopped, and answers nothing.
    Hang,
    /// `systemctl stop` and `start` of a guest.
    Stop,
    /// `host-upgrade` of what cannot be.
    Refusals,
    /// `host-upgrade --dry-run`.
    DryRun,
    /// `host-upgrade` where systemd refuses the kexec.
    KexecRefused,
    /// The host's own tools make its initial RAM disk.
    Initrd,
    /// `host-upgrade`.
    Upgrade,
    /// `host-upgrade`, with guests that their units let go on: none is resumed early.
    UpgradeLate,
    /// `kexec -s -l` and `systemctl kexec`.
    Kexec,
    /// The same with guests that were resumed early, and that no unit has taken over.
    KexecEarly,
    /// `host-upgrade` with a kexec that fails when systemd has ended already.
    KexecFails,
    /// `systemctl reboot`.
    Reboot,
    /// The host's power is cut.
    PowerLoss,
    /// The host's power is cut when all guests were saved, to files with their RAM in them.
    SavedPowerLoss,
}

/// How the host's kernel ends by an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// The host goes into another kernel, and its guests go on.
    Kexec,
    /// It is started again, and its guests go on from its disk.
    Saved,
    /// It is started again, and they are.
    Anew,
}

/// What was seen of one operation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct OperationReport {
    /// Its name.
    pub operation: String,
    /// What of it was not as it should be.
    pub wrong: Vec<String>,
    /// What is worth reading.
    pub said: Vec<String>,
}

/// How far the operator has got.
#[derive(Default, Serialize, Deserialize)]
struct Progress {
    /// How many operations were begun.
    begun: usize,
    /// Whether the last of them ended the kernel, and is to be finished by the one after.
    under_way: Option<UnderWay>,
    reports: Vec<OperationReport>,
    /// What was seen of each guest.
    guests: Vec<Seen>,
}

/// An operation that ended the kernel.
#[derive(Serialize, Deserialize)]
struct UnderWay {
    operation: Operation,
    /// Which boot it was (`/proc/sys/kernel/random/boot_id`).
    boot_id: String,
    report: OperationReport,
}

impl Progress {
    fn path() -> PathBuf {
        Path::new(KEPT).join("progress")
    }

    fn read() -> Result<Self> {
        match fs::read(Self::path()) {
            Ok(text) => serde_json::from_slice(&text).context("reading how far the operator has got"),
            Err(_) => Ok(Self::default()),
        }
    }

    /// Writes it so that it outlives a loss of power, and nothing else with it.
    fn write(&self) -> Result<()> {
        let next = Path::new(KEPT).join("progress.next");
        fs::write(&next, serde_json::to_vec(self)?).context("writing down how far the operator has got")?;
        File::open(&next)?.sync_all()?;
        fs::rename(&next, Self::path())?;
        Ok(File::open(KEPT)?.sync_all()?)
    }
}

/// The operator, inside the host.
pub fn run() -> Result<()> {
    // It is stopped once it has seen the guests end.
    // SAFETY: no handler is installed.
    unsafe { signal(Signal::SIGTERM, SigHandler::SigIgn) }?;
    let scenario = Scenario::read(&Path::new(LAB).join("scenario.toml"))?;
    println!("host is up: {}", fs::read_to_string("/proc/version")?.trim());
    if !scenario.outage.is_empty() {
        println!("{REPORT_MARK}{}", serde_json::to_string(&outage::run(&scenario))?);
        return Ok(());
    }
    let rate = Rate::begin();
    let mut progress = Progress::read()?;
    let report = match operate(&scenario, &rate, &mut progress) {
        Ok(()) => Report { operations: progress.reports, powered_off: true, ..Report::default() },
        Err(error) => {
            programs::show_logs(&scenario);
            let stopped_by = Some(format!("{error:#}"));
            Report { operations: progress.reports, stopped_by, ..Report::default() }
        }
    };
    println!("{REPORT_MARK}{}", serde_json::to_string(&report)?);
    Ok(())
}

fn operate(scenario: &Scenario, rate: &Rate, progress: &mut Progress) -> Result<()> {
    let count = 1 + usize::from(scenario.second.is_some());
    let names = &GUESTS[..count];
    let mut seen = std::mem::take(&mut progress.guests).into_iter();
    let by = progress.under_way.as_ref().map_or(CountedOn::Tsc, |under_way| under_way.operation.counted_on());
    let mut guests =
        names.iter().map(|name| Followed::of(name, seen.next(), by)).collect::<Result<Vec<_>>>()?;
    for guest in &mut guests {
        guest.settle(rate)?;
    }
    if let Some(UnderWay { operation, boot_id, mut report }) = progress.under_way.take() {
        endings::finish(operation, &boot_id, &mut guests, scenario, &mut report)?;
        progress.finished(report);
    }
    while let Some(operation) = scenario.operations.get(progress.begun) {
        progress.begun += 1;
        let mut report = OperationReport { operation: operation.to_string(), ..OperationReport::default() };
        println!("operator: {operation}");
        if operation.ending().is_some() {
            match endings::end_the_kernel(*operation, guests, scenario, progress, report)? {}
        }
        operations::run(*operation, &mut guests, scenario, &mut report)?;
        progress.finished(report);
    }
    Ok(())
}

impl Progress {
    fn finished(&mut self, report: OperationReport) {
        for line in &report.said {
            println!("  {line}");
        }
        for wrong in &report.wrong {
            println!("  WRONG: {wrong}");
        }
        self.reports.push(report);
    }
}

impl Operation {
    /// Whether a kernel is loaded for it.
    pub fn loads_a_kernel(self) -> bool {
        self.ending() == Some(Ending::Kexec) || self == Self::KexecFails
    }

    /// Whether the host itself ends by it.
    pub fn ends_the_machine(self) -> bool {
        matches!(self.ending(), Some(Ending::Saved | Ending::Anew))
    }

    /// What of the host's has counted on over it.
    fn counted_on(self) -> CountedOn {
        if self.ends_the_machine() { CountedOn::Rtc } else { CountedOn::Tsc }
    }

    /// Whether the guests must go on under the kernel after it.
    fn guests_go_on(self) -> bool {
        self.ending() != Some(Ending::Anew)
    }

    fn cuts_the_power(self) -> bool {
        matches!(self, Self::PowerLoss | Self::SavedPowerLoss)
    }

    /// How it ends the host's kernel, if it does.
    fn ending(self) -> Option<Ending> {
        match self {
            Self::Upgrade | Self::UpgradeLate | Self::Kexec | Self::KexecEarly => Some(Ending::Kexec),
            Self::KexecFails | Self::SavedPowerLoss => Some(Ending::Saved),
            Self::Reboot | Self::PowerLoss => Some(Ending::Anew),
            Self::Reload
            | Self::Crash
            | Self::Hang
            | Self::Stop
            | Self::Refusals
            | Self::DryRun
            | Self::KexecRefused
            | Self::Initrd => None,
        }
    }
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Reload => "reload",
            Self::Crash => "crash",
            Self::Hang => "hang",
            Self::Stop => "stop",
            Self::Refusals => "refusals",
            Self::DryRun => "dry run",
            Self::KexecRefused => "kexec refused",
            Self::Initrd => "initrd",
            Self::Upgrade => "upgrade",
            Self::UpgradeLate => "late upgrade",
            Self::Kexec => "kexec",
            Self::KexecEarly => "early kexec",
            Self::KexecFails => "kexec fails",
            Self::Reboot => "reboot",
            Self::PowerLoss => "power loss",
            Self::SavedPowerLoss => "power loss, saved",
        })
    }
}
