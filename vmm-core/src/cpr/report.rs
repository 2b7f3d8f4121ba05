//! How a handover went: its phases timed, the downtime achieved, what moved.

use serde::{Deserialize, Serialize};

use super::Mode;
use crate::x86::clock::Basis;

/// The steps of a handover. Logs, progress, errors and the report share them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Looking for blockers.
    Check,
    /// Reaching the target, or starting the new binary's probe.
    Connect,
    /// Agreeing on versions.
    Hello,
    /// Sending descriptors and configuration; the target builds the machine from them.
    Prepare,
    /// Stopping vCPUs and devices. The guest stands from here …
    Stop,
    /// Reading and encoding the state.
    Save,
    /// Handing the state over, until the target has claimed the guest. … to here.
    Handover,
    /// Letting go of what the source still holds.
    Release,
}

impl Phase {
    /// Its name in logs and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Connect => "connect",
            Self::Hello => "hello",
            Self::Prepare => "prepare",
            Self::Stop => "stop",
            Self::Save => "save",
            Self::Handover => "handover",
            Self::Release => "release",
        }
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How long a step took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseTime {
    /// The step (`prepare`, `save: net0`, `target: load vcpus`). Steps follow each other: none is part of another.
    pub phase: String,
    /// Its length in microseconds.
    pub us: u64,
}

impl PhaseTime {
    /// The device whose step it is, if it is one's ([`Stopwatch::lap_of`]).
    pub fn device(&self) -> Option<&str> {
        // In an exec each step is there twice, named for its way.
        let phase = ["away: ", "back: "].iter().find_map(|way| self.phase.strip_prefix(way));
        let phase = phase.unwrap_or(&self.phase);
        DEVICE_STEPS.iter().find_map(|step| phase.strip_prefix(step)?.strip_prefix(": "))
    }
}

/// The steps of devices.
const DEVICE_STEPS: [&str; 4] = ["stop", "save", "target: load", "target: resume"];

/// How a handover went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How it was handed over.
    pub mode: Mode,
    /// From the last vCPU leaving the guest in the source to the first entering it in the target, in microseconds.
    /// Absent for a save (the target comes later) and for a guest that was not running. That of a load is from the save of its clock.
    pub downtime_us: Option<u64>,
    /// What tells the time for which a guest that was loaded has stood.
    pub clock: Option<Basis>,
    /// From the request to the end, in microseconds.
    pub total_us: u64,
    /// The steps.
    pub phases: Vec<PhaseTime>,
    /// Bytes of state that were written while the guest stood.
    pub state_bytes: u64,
    /// How many descriptors moved.
    pub descriptors: u32,
    /// How many vCPUs moved.
    pub vcpus: u32,
    /// Bytes of RAM that stayed in place.
    pub ram_kept: u64,
    /// Bytes of RAM that were copied, before they were compressed.
    pub ram_copied: u64,
}

/// Nanoseconds of `CLOCK_MONOTONIC`: one clock for every process on the host.
pub fn monotonic_ns() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}

/// Times steps as they go by.
#[derive(Debug)]
pub struct Stopwatch {
    started: u64,
    last: u64,
    laps: Vec<PhaseTime>,
}

impl Stopwatch {
    /// Starts now.
    pub fn start() -> Self {
        let now = monotonic_ns();
        Self { started: now, last: now, laps: Vec::new() }
    }

    /// Ends a step that began at the one before.
    pub fn lap(&mut self, name: impl Into<String>) {
        let now = monotonic_ns();
        self.laps.push(PhaseTime { phase: name.into(), us: (now - self.last) / 1000 });
        self.last = now;
    }

    /// Ends a step of one device, which is called after both.
    pub fn lap_of(&mut self, step: &str, device: &str) {
        self.lap(format!("{step}: {device}"));
    }

    /// `CLOCK_MONOTONIC` at the start, in ns.
    pub fn started_ns(&self) -> u64 {
        self.started
    }

    /// `CLOCK_MONOTONIC` at the end of the last step, in ns.
    pub fn last_ns(&self) -> u64 {
        self.last
    }

    /// The steps so far.
    pub fn laps(&self) -> &[PhaseTime] {
        &self.laps
    }

    /// Microseconds since the start.
    pub fn total(&self) -> u64 {
        (monotonic_ns() - self.started) / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_of_a_device_is_known_by_its_name() {
        let mut watch = Stopwatch::start();
        watch.lap_of("stop", "net0");
        watch.lap_of("target: resume", "disk: a");
        watch.lap("target: load vcpus");
        watch.lap("save");
        watch.lap("back: save: net0");
        let devices: Vec<_> = watch.laps().iter().map(PhaseTime::device).collect();
        assert_eq!(devices, [Some("net0"), Some("disk: a"), None, None, Some("net0")]);
    }
}
