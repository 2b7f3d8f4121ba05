//! What stands in the way of a handover, known before anything is touched.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One reason why a guest cannot be handed over in a mode, and the way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocker {
    /// The part that objects (`pc.ram`, `serial0`).
    pub part: String,
    /// Why, and what would do.
    pub reason: String,
}

impl Blocker {
    /// A blocker of `part`.
    pub fn new(part: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { part: part.into(), reason: reason.into() }
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.part, self.reason)
    }
}
