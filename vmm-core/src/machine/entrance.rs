//! Whether a guest may come into a process: one that is about to end claims none.

use std::sync::atomic::{AtomicU8, Ordering::SeqCst};

/// A guest may come.
const AWAITED: u8 = 0;
/// One was claimed, or is just being, and its owner cannot do anything with it yet.
const CLAIMED: u8 = 1;
/// None may come any more.
const CLOSED: u8 = 2;

/// The process that would have the guest is ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this process was told to end; the guest is not taken")]
pub struct Ending;

/// What is to be known of a guest's coming by whoever claims it and by whoever may end the process.
#[derive(Debug, Default)]
pub struct Entrance(AtomicU8);

impl Entrance {
    /// To be asked before a guest is claimed. Whatever asks for the process's end waits from then on.
    pub fn begin(&self) -> Result<(), Ending> {
        match self.0.compare_exchange(AWAITED, CLAIMED, SeqCst, SeqCst) {
            Ok(_) => Ok(()),
            Err(_) => Err(Ending),
        }
    }

    /// Whether a guest was claimed that is not settled yet.
    pub fn is_under_way(&self) -> bool {
        self.0.load(SeqCst) == CLAIMED
    }

    /// The guest is its owner's, or was not claimed after all.
    pub fn settled(&self) {
        // What is closed stays so.
        let _ = self.0.compare_exchange(CLAIMED, AWAITED, SeqCst, SeqCst);
    }

    /// To be asked before the process ends: none comes from then on. It must wait where this is `false`.
    pub fn close(&self) -> bool {
        let closed = self.0.compare_exchange(AWAITED, CLOSED, SeqCst, SeqCst);
        closed != Err(CLAIMED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_ends_claims_nothing_and_who_has_claimed_does_not_end() {
        let entrance = Entrance::default();
        entrance.begin().unwrap();
        assert!(entrance.is_under_way() && !entrance.close());
        entrance.settled();
        assert!(!entrance.is_under_way() && entrance.close() && entrance.close());
        assert_eq!(entrance.begin(), Err(Ending));
        entrance.settled();
        assert_eq!(entrance.begin(), Err(Ending));
    }
}
