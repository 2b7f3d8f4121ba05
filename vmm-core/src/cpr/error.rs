//! Why a handover did not happen, and where the guest is.

use std::fmt;

use super::blockers::Blocker;
use super::report::Phase;

/// Where the guest is after a handover that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whereabouts {
    /// In the source, as if nothing had happened.
    Source,
    /// In this process, to which it went on its way.
    Stopover(u32),
    /// Nobody who is asked can know.
    Unknown,
}

/// Why a handover did not happen.
#[derive(Debug)]
pub struct HandoverError {
    /// The step that failed.
    pub phase: Phase,
    /// Why.
    pub why: String,
    /// What stands in the way, where it was refused before anything was touched.
    pub blockers: Vec<Blocker>,
    /// Whether somebody asked for it.
    pub cancelled: bool,
    /// Where the guest is.
    pub guest: Whereabouts,
}

impl HandoverError {
    /// A failure in `phase`; the guest is in the source.
    pub fn new(phase: Phase, why: impl fmt::Display) -> Self {
        Self {
            phase,
            why: why.to_string(),
            blockers: Vec::new(),
            cancelled: false,
            guest: Whereabouts::Source,
        }
    }

    /// A refusal before anything was touched.
    pub fn blocked(blockers: Vec<Blocker>) -> Self {
        let list = blockers.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        Self { blockers, ..Self::new(Phase::Check, format!("blocked: {list}")) }
    }

    /// Somebody cancelled in `phase`.
    pub fn cancelled(phase: Phase) -> Self {
        Self { cancelled: true, ..Self::new(phase, "cancelled") }
    }
}

impl fmt::Display for HandoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.phase, self.why)?;
        match self.guest {
            Whereabouts::Source => f.write_str(" (the guest is in the source)"),
            Whereabouts::Stopover(pid) => {
                write!(f, " (the guest runs on in process {pid}, which has its old binary and its monitor)")
            }
            Whereabouts::Unknown => f.write_str(" (where the guest is cannot be known)"),
        }
    }
}

impl std::error::Error for HandoverError {}

/// Adds the step to an error.
pub trait InPhase<T> {
    /// Says in which step it happened.
    fn in_phase(self, phase: Phase) -> Result<T, HandoverError>;
}

impl<T, E: fmt::Display> InPhase<T> for Result<T, E> {
    fn in_phase(self, phase: Phase) -> Result<T, HandoverError> {
        self.map_err(|error| HandoverError::new(phase, error))
    }
}
