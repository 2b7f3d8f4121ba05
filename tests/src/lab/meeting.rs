//! Where two guests' machines wait for each other, so that both do at the same time what each has to do.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};

/// How long one waits for the other.
const PATIENCE: Duration = Duration::from_mins(3);

/// A meeting of two, again and again.
#[derive(Debug, Default)]
pub struct Meeting {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// How often anybody came.
    came: u64,
    /// Whether one of them comes no more.
    left: bool,
}

impl Meeting {
    /// Waits for the other one to come as often as this one has.
    pub fn wait(&self) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.came += 1;
        self.changed.notify_all();
        let all_there = state.came.next_multiple_of(2);
        let waits = |state: &mut State| state.came < all_there && !state.left;
        let (state, timeout) =
            self.changed.wait_timeout_while(state, PATIENCE, waits).unwrap_or_else(PoisonError::into_inner);
        ensure!(!timeout.timed_out(), "waited {PATIENCE:?} for the other guest");
        ensure!(state.came >= all_there, "the other guest has made its last step");
        Ok(())
    }

    /// Comes no more: the other one need not wait.
    pub fn leave(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).left = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    use super::*;

    #[test]
    fn who_waits_for_one_that_has_left_is_told_at_once() {
        let meeting = Meeting::default();
        meeting.leave();
        assert!(meeting.wait().unwrap_err().to_string().contains("last step"));
    }

    #[test]
    fn neither_is_ahead_of_the_other() {
        let (meeting, ahead) = (Arc::new(Meeting::default()), Arc::new(AtomicU32::new(0)));
        let (other, others) = (Arc::clone(&meeting), Arc::clone(&ahead));
        let thread = std::thread::spawn(move || {
            for _ in 0..100 {
                other.wait().unwrap();
                others.fetch_add(1, SeqCst);
            }
        });
        for round in 0..100 {
            assert!(ahead.load(SeqCst) <= round, "it did not wait");
            meeting.wait().unwrap();
        }
        thread.join().unwrap();
    }
}
