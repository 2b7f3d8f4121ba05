//! Where two guests' machines wait for each other, so that both do at the same time what each has to do.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};

/// How long one waits for the other.
const PATIENCE: Duration = Duration::from_mins(3);

/// A meeting of two, again and again.
#[derive(Debug, Default)]
pub struct Meeting {
    /// How often anybody came.
    came: Mutex<u64>,
    changed: Condvar,
}

impl Meeting {
    /// Waits for the other one to come as often as this one has.
    pub fn wait(&self) -> Result<()> {
        let mut came = self.came.lock().unwrap_or_else(PoisonError::into_inner);
        *came += 1;
        self.changed.notify_all();
        let all_there = came.next_multiple_of(2);
        let waited = self.changed.wait_timeout_while(came, PATIENCE, |came| *came < all_there);
        if waited.unwrap_or_else(PoisonError::into_inner).1.timed_out() {
            bail!("waited {PATIENCE:?} for the other guest");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    use super::*;

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
