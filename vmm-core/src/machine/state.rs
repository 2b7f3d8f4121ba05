//! The machine's own sections on the wire.

use serde::{Deserialize, Serialize};

use super::run_state::RunState;
use crate::cpr::format::{Section, SectionKind};
use crate::x86::platform::Platform;

/// What a guest is made of: everything that can be built before its state is there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MachineState {
    /// The configuration, as TOML: it can be read by people and by builds that know more keys.
    pub config: String,
    /// What its VM and vCPUs are made with.
    pub platform: Platform,
}

impl Section for MachineState {
    const KIND: SectionKind = SectionKind::Machine;
    const VERSION: u16 = 1;
    const OLDEST: u16 = 1;
}

/// Whether the guest ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunStateRecord {
    /// The run state before the stop: running, paused or suspended. A load goes back to it.
    pub run_state: RunState,
}

impl Section for RunStateRecord {
    const KIND: SectionKind = SectionKind::RunState;
    const VERSION: u16 = 1;
    const OLDEST: u16 = 1;
}

/// There where a guest was suspended to be saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WakeRecord {
    /// Whoever loads it wakes it.
    pub wake: bool,
}

impl Section for WakeRecord {
    const KIND: SectionKind = SectionKind::Wake;
    const VERSION: u16 = 1;
    const OLDEST: u16 = 1;
}
