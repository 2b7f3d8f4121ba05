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

    /// Whether a guest that sleeps now is to be woken by whoever asks this: it is said once.
    pub(super) fn take(&self) -> bool {
        let until = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        until.is_some_and(|until| Instant::now() < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_woken_once_and_in_time_only() {
        let awake = StayAwake::default();
        assert!(!awake.take());
        awake.set(Duration::from_mins(1));
        assert!(awake.take() && !awake.take());
        awake.set(Duration::from_mins(1));
        awake.set(Duration::ZERO);
        assert!(!awake.take());
        awake.set(Duration::from_nanos(1));
        std::thread::sleep(Duration::from_millis(1));
        assert!(!awake.take());
    }
}
