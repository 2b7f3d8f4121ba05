//! CheckPoint and Restart: what moves, how, and who owns the guest meanwhile.

pub mod blockers;
pub mod error;
pub mod exec;
pub mod fds;
pub mod format;
pub mod liveupdate;
pub mod observer;
pub mod ownership;
pub mod reboot;
pub mod report;
pub mod transfer;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The modes, with QEMU's names (`MigMode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Another process on the same host takes over, through a UNIX socket.
    CprTransfer,
    /// The process executes its new binary in place.
    CprExec,
    /// State goes to a file; a later process loads it.
    CprReboot,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 3] = [Self::CprTransfer, Self::CprExec, Self::CprReboot];

    /// QEMU's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::CprTransfer => "cpr-transfer",
            Self::CprExec => "cpr-exec",
            Self::CprReboot => "cpr-reboot",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mode {
    type Err = String;

    /// Reads `cpr-transfer` or `transfer`, and so on.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|mode| mode.name() == text || mode.name().strip_prefix("cpr-") == Some(text))
            .ok_or_else(|| format!("'{text}' is no mode; expected transfer, exec or reboot"))
    }
}
