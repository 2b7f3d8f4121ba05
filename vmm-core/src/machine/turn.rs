//! Whose turn it is to change the run state. A step may take as long as RAM takes to be copied: what the state is by then is known to all meanwhile.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::Duration;

use super::run_state::{IllegalStep, RunState};

/// Between two looks at a state that somebody changes.
const RETRY: Duration = Duration::from_millis(1);

/// A run state that one thread changes at a time.
#[derive(Debug)]
pub(super) struct Turns {
    state: Mutex<RunState>,
    shown: Mutex<RunState>,
}

/// The right to change it. What it is then is shown when this is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    state: MutexGuard<'a, RunState>,
    shown: &'a Mutex<RunState>,
}

impl Turns {
    pub(super) fn new(state: RunState) -> Self {
        Self { state: Mutex::new(state), shown: Mutex::new(state) }
    }

    /// What it is, without waiting for whoever changes it.
    pub(super) fn shown(&self) -> RunState {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for its turn.
    pub(super) fn wait(&self) -> Turn<'_> {
        self.turn(self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for its turn to make it this, but not for the end of a handover: nobody knows when that is.
    pub(super) fn wait_unless_handed_over(&self, to: RunState) -> Result<Turn<'_>, IllegalStep> {
        loop {
            match self.state.try_lock() {
                Ok(state) => return Ok(self.turn(state)),
                Err(TryLockError::Poisoned(state)) => return Ok(self.turn(state.into_inner())),
                Err(TryLockError::WouldBlock) => {}
            }
            match self.shown() {
                from @ RunState::FinishMigrate => return Err(IllegalStep { from, to }),
                _ => thread::sleep(RETRY),
            }
        }
    }

    fn turn<'a>(&'a self, state: MutexGuard<'a, RunState>) -> Turn<'a> {
        Turn { state, shown: &self.shown }
    }
}

impl Turn<'_> {
    /// Shows what it is by now.
    pub(super) fn show(&self) {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = *self.state;
    }
}

impl Deref for Turn<'_> {
    type Target = RunState;

    fn deref(&self) -> &RunState {
        &self.state
    }
}

impl DerefMut for Turn<'_> {
    fn deref_mut(&mut self) -> &mut RunState {
        &mut self.state
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.show();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handover_keeps_nobody_waiting_who_asks_or_would_change_it() {
        let turns = Turns::new(RunState::Running);
        let mut turn = turns.wait();
        turn.step(RunState::FinishMigrate).unwrap();
        turn.show();
        assert_eq!(turns.shown(), RunState::FinishMigrate);
        let refused = turns.wait_unless_handed_over(RunState::Running).unwrap_err();
        assert_eq!(refused, IllegalStep { from: RunState::FinishMigrate, to: RunState::Running });
        *turn = RunState::Paused;
        assert_eq!(turns.shown(), RunState::FinishMigrate);
        drop(turn);
        assert_eq!(*turns.wait_unless_handed_over(RunState::Running).unwrap(), RunState::Paused);
    }

    #[test]
    fn whoever_waits_for_a_short_step_gets_its_turn() {
        let turns = Turns::new(RunState::Running);
        thread::scope(|scope| {
            let turn = turns.wait();
            let waits = scope.spawn(|| *turns.wait_unless_handed_over(RunState::Paused).unwrap());
            thread::sleep(10 * RETRY);
            assert_eq!(turns.shown(), RunState::Running);
            drop(turn);
            assert_eq!(waits.join().unwrap(), RunState::Running);
        });
    }
}
