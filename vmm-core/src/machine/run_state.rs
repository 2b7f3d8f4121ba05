//! Run states and their legal steps, with QEMU's names.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a guest is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// Built, not started.
    Prelaunch,
    /// Waiting for its state, or loading it.
    Inmigrate,
    /// Its vCPUs run.
    Running,
    /// Stopped by `stop`.
    Paused,
    /// Asleep (ACPI S3).
    Suspended,
    /// Stopped for a handover that is not decided.
    FinishMigrate,
    /// Given away. It never runs here again.
    Postmigrate,
    /// Powered off.
    Shutdown,
    /// KVM could not go on with it, or a device of the host's that it has failed.
    InternalError,
}

/// A step that the run state does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the guest is {from}; it cannot become {to}")]
pub struct IllegalStep {
    /// The run state it is in.
    pub from: RunState,
    /// The one that was asked for.
    pub to: RunState,
}

impl RunState {
    /// The states that may follow this one.
    fn next(self) -> &'static [Self] {
        use RunState::{
            FinishMigrate, Inmigrate, InternalError, Paused, Postmigrate, Prelaunch, Running, Shutdown,
            Suspended,
        };
        match self {
            Prelaunch => &[Running, Paused, Shutdown],
            Inmigrate => &[Running, Paused, Suspended, Shutdown],
            Running => &[Paused, Suspended, FinishMigrate, Shutdown, InternalError],
            Paused | Suspended => &[Running, FinishMigrate, Shutdown],
            FinishMigrate => &[Running, Paused, Suspended, Postmigrate, Shutdown, InternalError],
            InternalError => &[Shutdown],
            Postmigrate | Shutdown => &[],
        }
    }

    /// Takes a step, if it is legal.
    pub fn step(&mut self, to: Self) -> Result<(), IllegalStep> {
        if !self.next().contains(&to) {
            return Err(IllegalStep { from: *self, to });
        }
        tracing::debug!("run state {self} -> {to}");
        *self = to;
        Ok(())
    }

    /// Whether a guest in this state can be handed over.
    pub fn can_be_handed_over(self) -> bool {
        self.next().contains(&Self::FinishMigrate)
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prelaunch => "prelaunch",
            Self::Inmigrate => "inmigrate",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Suspended => "suspended",
            Self::FinishMigrate => "finish-migrate",
            Self::Postmigrate => "postmigrate",
            Self::Shutdown => "shutdown",
            Self::InternalError => "internal-error",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_was_given_away_cannot_be_paused_into_life_from_shutdown() {
        let mut state = RunState::Shutdown;
        assert_eq!(
            state.step(RunState::Running),
            Err(IllegalStep { from: RunState::Shutdown, to: RunState::Running })
        );
    }

    #[test]
    fn only_a_guest_that_lives_can_be_handed_over() {
        for state in [RunState::Running, RunState::Paused, RunState::Suspended] {
            assert!(state.can_be_handed_over(), "{state}");
        }
        for state in [RunState::Inmigrate, RunState::Postmigrate, RunState::Shutdown, RunState::InternalError]
        {
            assert!(!state.can_be_handed_over(), "{state}");
        }
    }
}
