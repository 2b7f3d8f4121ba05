//! What a guest's clock showed, and how much time has passed between two such answers, over the ends of the host's kernels.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::lab::console::Reading;
use crate::lab::kexec::Mark;

/// What a guest's monotonic clock showed, in ns, between two moments.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Answer {
    /// When it was asked for.
    pub asked: Mark,
    /// When it had come.
    pub answered: Mark,
    /// The clock.
    pub monotonic: u64,
    /// Soon after that, by the host's clock.
    at: SystemTime,
}

/// What has counted on since an answer.
#[derive(Debug, Clone, Copy)]
pub enum CountedOn {
    /// The host's TSC: the host went into another kernel at most.
    Tsc,
    /// Its RTC, which shows seconds: the host was started again, and its TSC counts from nought. It may count more by now than it did then.
    Rtc,
}

impl Answer {
    /// What was read just now, by a TSC that counts so fast.
    pub fn of(reading: &Reading, khz: f64) -> Self {
        let [asked, answered] = [reading.asked, reading.answered].map(|at| Mark::at(at, khz));
        Self { asked, answered, monotonic: reading.status.monotonic, at: SystemTime::now() }
    }

    /// How much time has passed since another one: at least, and at most.
    pub fn since(&self, earlier: &Self, by: CountedOn) -> (Duration, Duration) {
        const COARSE: Duration = Duration::from_secs(2);
        match by {
            CountedOn::Tsc => (self.asked.since(&earlier.answered), self.answered.since(&earlier.asked)),
            CountedOn::Rtc => {
                let passed = self.at.duration_since(earlier.at).unwrap_or_default();
                (passed.saturating_sub(COARSE), passed + COARSE)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tsc_of_a_host_that_was_started_again_tells_nothing() {
        let answer = |at| {
            let mark = Mark::now(1e6);
            Answer { asked: mark, answered: mark, monotonic: 0, at }
        };
        let then = SystemTime::now();
        let earlier = answer(then);
        // Both hosts had been up for as long when they were asked, and for a moment more.
        let later = answer(then + Duration::from_secs(36));
        assert_eq!(later.since(&earlier, CountedOn::Rtc), (Duration::from_secs(34), Duration::from_secs(38)));
        assert!(later.since(&earlier, CountedOn::Tsc).1 < Duration::from_secs(34));
    }
}
