//! Who watches a handover go by.

use super::report::Phase;

/// Told of each step as it begins. Must not block: steps are told within the downtime.
pub trait Observer: Send + Sync {
    /// A step begins.
    fn phase(&self, phase: Phase);
    /// So many bytes of RAM are copied, of so many.
    fn ram(&self, _copied: u64, _total: u64) {}
}

impl<F: Fn(Phase) + Send + Sync> Observer for F {
    fn phase(&self, phase: Phase) {
        self(phase);
    }
}
