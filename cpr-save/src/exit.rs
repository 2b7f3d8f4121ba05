//! How the command ends: the exit code says where the guest is.

use std::process::ExitCode;

use vmm_core::cpr::blockers::Blocker;
use vmm_core::monitor::RunState;

/// Why the command did not do what it was asked, and where that leaves the guest. (0 is done, 2 is usage.)
#[derive(Debug)]
pub enum Failure {
    /// 1: it failed, and the guest is where it was.
    InSource {
        /// The guest's run state there.
        state: RunState,
        /// What went wrong.
        error: anyhow::Error,
    },
    /// 3: it was refused before anything was touched.
    Refused {
        /// What stands in the way; empty when `error` is all there is to say.
        blockers: Vec<Blocker>,
        /// What was refused.
        error: anyhow::Error,
    },
    /// 4: the guest runs nowhere, or it is not known where.
    Unknown(anyhow::Error),
}

impl Failure {
    /// The exit code.
    pub fn code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::InSource { .. } => 1,
            Self::Refused { .. } => 3,
            Self::Unknown(_) => 4,
        })
    }

    /// A word for it in JSON.
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::InSource { .. } => "failed",
            Self::Refused { .. } => "refused",
            Self::Unknown(_) => "unknown",
        }
    }

    /// What went wrong.
    pub fn error(&self) -> &anyhow::Error {
        match self {
            Self::InSource { error, .. } | Self::Refused { error, .. } | Self::Unknown(error) => error,
        }
    }

    /// What stood in the way.
    pub fn blockers(&self) -> &[Blocker] {
        match self {
            Self::Refused { blockers, .. } => blockers,
            Self::InSource { .. } | Self::Unknown(_) => &[],
        }
    }

    /// Refused without a list of blockers.
    pub fn refused(error: impl Into<anyhow::Error>) -> Self {
        Self::Refused { blockers: Vec::new(), error: error.into() }
    }
}
