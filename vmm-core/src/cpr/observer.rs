//! Who watches a handover go by.

use super::report::Phase;

/// Told of each step as it begins. Must not block: steps are told within the downtime.
pub trait Observer: Send + Sync {
    /// A step begins.
    fn phase(&self, phase: Phase);
}

impl<F: Fn(Phase) + Send + Sync> Observer for F {
    fn phase(&self, phase: Phase) {
        self(phase);
    }
}
