//! Keeps a guest awake that was asked to sleep, and is not to sleep any more: it may be on its way.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Until when it is woken as soon as it sleeps.
#[derive(Debug, Default)]
pub(super) struct StayAwake(Mutex<Option<Instant>>);

impl StayAwake {
    /// From now on, for so long; not at all any more, if that is nothing.
    pub(super) fn set(&self, time: Duration) {
        let until = Instant::now().checked_add(time).filter(|_| !time.is_zero());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    /// Whether a guest that sleeps now is to be woken.
    pub(super) fn is_wanted(&self) -> bool {
        let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_to_be_awake_for_as_long_as_was_said() {
        let awake = StayAwake::default();
        assert!(!awake.is_wanted());
        awake.set(Duration::from_mins(1));
        assert!(awake.is_wanted());
        awake.set(Duration::ZERO);
        assert!(!awake.is_wanted());
        awake.set(Duration::from_nanos(1));
        std::thread::sleep(Duration::from_millis(1));
        assert!(!awake.is_wanted());
    }
}
