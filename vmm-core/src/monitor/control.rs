//! What the commands need from the machine.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::channels::{Channels, Destination, Incoming};
use super::types::{
    CpuInfoFast, EarlyInfo, HandoverReport, MigrateCapabilities, MigrateParameters, MigrateParametersUpdate,
    MigrationInfo, RunState,
};
use crate::config::Uuid;
use crate::cpr::Mode;
use crate::cpr::blockers::Blocker;
use crate::memory::RamFate;

/// The classes of errors that QMP knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorClass {
    /// Anything that needs no other class.
    GenericError,
    /// There is no such command, or not now.
    CommandNotFound,
    /// The device is not active.
    DeviceNotActive,
    /// The device is not there.
    DeviceNotFound,
    /// KVM lacks a capability.
    KVMMissingCap,
}

/// Why a command was refused or failed. `desc` is for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{desc}")]
pub struct CommandError {
    /// The class.
    pub class: ErrorClass,
    /// What went wrong, and the way out.
    pub desc: String,
}

impl CommandError {
    /// An error of class `GenericError`.
    pub fn generic(desc: impl Into<String>) -> Self {
        Self { class: ErrorClass::GenericError, desc: desc.into() }
    }

    pub(super) fn not_found(desc: impl Into<String>) -> Self {
        Self { class: ErrorClass::CommandNotFound, desc: desc.into() }
    }

    pub(super) fn value(parameter: &str, found: &str, expected: &str) -> Self {
        Self::generic(format!("parameter '{parameter}' does not accept value '{found}'; expected {expected}"))
    }
}

/// What `x-cpr-check` asks: whether a handover would be refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckRequest {
    /// In which mode.
    pub mode: Mode,
    /// To where; `None` asks about the guest alone.
    pub destination: Option<Destination>,
    /// With which command in exec mode; `None`: the one that the parameters hold.
    pub exec_command: Option<Vec<String>>,
    /// What becomes of RAM in reboot mode.
    pub fate: RamFate,
    /// Whether the host is to go into another kernel meanwhile.
    pub kexec: bool,
    /// Whether the guest is suspended before, if it is not.
    pub suspend: bool,
}

/// What the commands need from the machine.
///
/// Called on the monitor's thread with the server borrowed: an implementation must not call back into the server (events go
/// through [`EventSender`](super::events::EventSender)) and must not wait for anything that is not bounded.
pub trait Control: Send + Sync {
    /// The guest's name.
    fn name(&self) -> String;
    /// The guest's identity.
    fn uuid(&self) -> Uuid;
    /// Whether a guest is here that nothing can be done with yet: commands wait until
    /// [`EventSender::wake`](super::events::EventSender::wake).
    fn is_taking_in(&self) -> bool {
        false
    }
    /// The run state.
    fn run_state(&self) -> RunState;
    /// The vCPUs; empty where none exist yet or any more.
    fn cpus(&self) -> Vec<CpuInfoFast>;

    /// Stops the vCPUs. Of a guest that is stopped: nothing.
    fn stop(&self) -> Result<(), CommandError>;
    /// Lets the vCPUs go on. Refused where the guest was given away.
    fn cont(&self) -> Result<(), CommandError>;
    /// Wakes a suspended guest.
    fn system_wakeup(&self) -> Result<(), CommandError>;
    /// Wakes a guest that sleeps, or goes to sleep within this time, once; with no time, lets it sleep.
    fn stay_awake(&self, time: Duration) -> Result<(), CommandError>;
    /// Presses the power button.
    fn system_powerdown(&self) -> Result<(), CommandError>;
    /// Resets the guest.
    fn system_reset(&self) -> Result<(), CommandError>;
    /// Asks the guest to keep so many bytes of its RAM and to leave the rest to the balloon.
    fn balloon(&self, bytes: u64) -> Result<(), CommandError>;
    /// How many bytes of its RAM the guest has, less what the balloon has.
    fn balloon_actual(&self) -> Result<u64, CommandError>;
    /// Ends the process, soon: after the answer is written ([`MonitorServer::finish`](super::server::MonitorServer::finish)).
    fn quit(&self) -> Result<(), CommandError>;

    /// How the last handover stands, and what blocks one in the mode that is set.
    fn migration(&self) -> MigrationInfo;
    /// How handovers are done.
    fn migrate_parameters(&self) -> MigrateParameters;
    /// Changes how they are done.
    fn migrate_set_parameters(&self, update: MigrateParametersUpdate) -> Result<(), CommandError>;
    /// The capabilities.
    fn migrate_capabilities(&self) -> MigrateCapabilities;
    /// Changes them.
    fn migrate_set_capabilities(&self, capabilities: MigrateCapabilities) -> Result<(), CommandError>;
    /// Starts a handover, in the mode that `destination` is of. Refused with every blocker named. `wake`: a guest that sleeps is to
    /// be woken by whoever loads it.
    fn migrate(&self, destination: Destination, wake: bool) -> Result<(), CommandError>;
    /// Takes a guest in; only in a process that was started to wait for this.
    fn migrate_incoming(&self, from: Incoming) -> Result<(), CommandError>;
    /// Cancels a handover under way. Without one: nothing.
    fn migrate_cancel(&self) -> Result<(), CommandError>;
    /// What stands in the way of a handover; touches nothing.
    fn check(&self, request: &CheckRequest) -> Result<Vec<Blocker>, CommandError>;
    /// The socket at which the guest's agent is asked.
    fn agent(&self) -> Result<PathBuf, CommandError>;
    /// What the last handover came to; `None` before the first.
    fn report(&self) -> Option<HandoverReport>;
    /// What a process says of itself that has resumed its guest early; `None` from any other.
    fn early(&self) -> Option<EarlyInfo> {
        None
    }
}

/// The channels of a check: `None` when neither `uri` nor `channels` was given and the mode needs one.
pub(super) fn check_destination(mode: Mode, channels: Channels) -> Result<Option<Destination>, CommandError> {
    if channels == Channels::default() { Ok(None) } else { channels.destination(mode).map(Some) }
}
