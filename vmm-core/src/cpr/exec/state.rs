//! What exec adds to the state.

use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

use crate::cpr::Mode;
use crate::cpr::fds::FdName;
use crate::cpr::format::{Section, SectionKind};
use crate::cpr::report::PhaseTime;

/// Each descriptor that stays open, and its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorNumbers {
    /// Names and numbers.
    pub numbers: Vec<(FdName, RawFd)>,
}

impl Section for DescriptorNumbers {
    const KIND: SectionKind = SectionKind::Descriptors;
    const VERSION: u16 = 1;
    const OLDEST: u16 = 1;
}

/// What the new image must know to tell how it went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journey {
    /// `CLOCK_MONOTONIC` when the handover was asked for, in ns.
    pub started_ns: u64,
    /// `CLOCK_MONOTONIC` when the last vCPU had left the guest, in ns.
    pub stopped_ns: u64,
    /// Until when the guest must have been claimed, in ns of `CLOCK_MONOTONIC`.
    pub deadline_ns: u64,
    /// The steps so far.
    pub phases: Vec<PhaseTime>,
    /// What the monitor's users have set.
    pub settings: Settings,
}

/// What the monitor's users have set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The mode of the next handover.
    pub mode: Option<Mode>,
    /// The command of the next exec; empty: the binary at our own path.
    pub exec_command: Vec<String>,
    /// Milliseconds from a stop to the claim.
    pub downtime_limit: u64,
    /// Milliseconds for everything before the stop.
    pub prepare_timeout: u64,
    /// Whether RAM stays in place.
    pub ignore_shared: bool,
    /// Whether handovers are told as events.
    pub events: bool,
}

impl Section for Journey {
    const KIND: SectionKind = SectionKind::Journey;
    const VERSION: u16 = 1;
    const OLDEST: u16 = 1;
}
