//! What the commands take and return, in QEMU's words.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cpr::Mode;
pub use crate::cpr::report::PhaseTime;
pub use crate::machine::run_state::RunState;
pub use crate::x86::clock::Basis;

/// How a handover stands, with QEMU's names (`MigrationStatus`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationStatus {
    /// None has been asked for.
    #[default]
    None,
    /// Preparing; the guest runs.
    Setup,
    /// State is on its way.
    Active,
    /// Being cancelled.
    Cancelling,
    /// Cancelled; the guest is where it was.
    Cancelled,
    /// Done.
    Completed,
    /// Failed; the guest is where it was.
    Failed,
}

impl MigrationStatus {
    /// QEMU's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Setup => "setup",
            Self::Active => "active",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }

    /// Whether nothing more will happen by itself.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Cancelled | Self::Completed | Self::Failed)
    }
}

impl fmt::Display for MigrationStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How the last handover stands (`query-migrate`). Times are in milliseconds, rounded up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct MigrationInfo {
    /// How it stands; left out on the wire before the first handover, as QEMU does.
    #[serde(skip_serializing_if = "is_none_status")]
    pub status: MigrationStatus,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_desc: Option<String>,
    /// From the command to the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_time: Option<u64>,
    /// How long the guest stood still.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downtime: Option<u64>,
    /// From the command to the stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub setup_time: Option<u64>,
    /// What stands in the way of a handover now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blocked_reasons: Vec<String>,
    /// RAM that is being copied, or that comes in while the guest runs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ram: Option<RamProgress>,
    /// The phases behind it and the one it is in.
    #[serde(rename = "x-cpr-phases", skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<PhaseTime>,
}

/// How much RAM has been copied, or has come in, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RamProgress {
    /// What is done.
    pub transferred: u64,
    /// What is not yet.
    pub remaining: u64,
    /// All of it.
    pub total: u64,
}

impl RamProgress {
    /// So much is done, of all.
    pub fn of(transferred: u64, total: u64) -> Self {
        Self { transferred, remaining: total.saturating_sub(transferred), total }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_none_status(status: &MigrationStatus) -> bool {
    *status == MigrationStatus::None
}

/// What a handover came to (`x-cpr-report`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct HandoverReport {
    /// The mode it was done in.
    pub mode: Mode,
    /// How it ended.
    pub status: MigrationStatus,
    /// Why, if it failed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error_desc: Option<String>,
    /// Its phases, in order.
    pub phases: Vec<PhaseTime>,
    /// Microseconds from the last vCPU leaving the guest to the first entering it, where it is known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub downtime_us: Option<u64>,
    /// What tells the time for which a guest that was loaded has stood.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub clock: Option<Basis>,
    /// Microseconds from the command to the end.
    pub total_us: u64,
    /// Bytes of state that moved.
    pub state_bytes: u64,
    /// Bytes of RAM that were copied.
    pub ram_copied: u64,
    /// Bytes of RAM that stayed in place.
    pub ram_kept: u64,
    /// Descriptors that moved.
    pub descriptors: u32,
    /// vCPUs that moved.
    pub vcpus: u32,
    /// Of a guest that was resumed early: how its unit took it over after that.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub taken_over: Option<TakenOver>,
}

/// The transfer by which a guest's unit took it from the process that had resumed it early.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TakenOver {
    /// Microseconds from when it was there to when its unit asked for it.
    pub after_us: u64,
    /// Microseconds for which it stood once more.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub downtime_us: Option<u64>,
    /// Microseconds that loading its state took.
    pub total_us: u64,
}

/// What a process that has resumed its guest early says of itself (`x-cpr-early`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct EarlyInfo {
    /// Its number.
    pub pid: u32,
    /// For how many microseconds the guest has been there.
    pub since_us: u64,
    /// How it was loaded; absent while it is not there.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub report: Option<HandoverReport>,
}

/// One vCPU (`query-cpus-fast`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CpuInfoFast {
    /// Its number, from 0.
    pub cpu_index: u32,
    /// Its thread's id in the kernel.
    pub thread_id: i32,
}

/// How handovers are done (`query-migrate-parameters`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrateParameters {
    /// The mode; `None` is QEMU's `normal`, which this VMM does not do.
    pub mode: Option<Mode>,
    /// The command that exec mode executes; empty: the binary now at the path of the running one, with its arguments.
    pub cpr_exec_command: Vec<String>,
    /// The bound on the time that the guest stands still, in milliseconds. Past it the source takes the guest back.
    pub downtime_limit: u64,
    /// The bound on everything before the stop, in milliseconds.
    pub prepare_timeout: u64,
}

impl Default for MigrateParameters {
    fn default() -> Self {
        Self { mode: None, cpr_exec_command: Vec::new(), downtime_limit: 5_000, prepare_timeout: 30_000 }
    }
}

impl MigrateParameters {
    /// Takes over what an update sets.
    pub fn apply(&mut self, update: MigrateParametersUpdate) {
        if let Some(mode) = update.mode {
            self.mode = mode;
        }
        if let Some(command) = update.cpr_exec_command {
            self.cpr_exec_command = command;
        }
        if let Some(limit) = update.downtime_limit {
            self.downtime_limit = limit;
        }
        if let Some(timeout) = update.prepare_timeout {
            self.prepare_timeout = timeout;
        }
    }
}

/// What `migrate-set-parameters` sets; what is `None` stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MigrateParametersUpdate {
    /// See [`MigrateParameters::mode`].
    pub mode: Option<Option<Mode>>,
    /// See [`MigrateParameters::cpr_exec_command`].
    pub cpr_exec_command: Option<Vec<String>>,
    /// See [`MigrateParameters::downtime_limit`].
    pub downtime_limit: Option<u64>,
    /// See [`MigrateParameters::prepare_timeout`].
    pub prepare_timeout: Option<u64>,
}

/// The capabilities (`query-migrate-capabilities`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MigrateCapabilities {
    /// RAM that both sides can reach stays in place. Without it, reboot copies RAM into the file.
    pub ignore_shared: bool,
    /// `MIGRATION` and `X_CPR_PHASE` events are sent.
    pub events: bool,
}
