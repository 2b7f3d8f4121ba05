//! A periodic timer whose expirations are counted against the clock.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use guest_init::status::Timer;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::clocks::monotonic;
use crate::setup::{self, Before};

const PERIOD: Duration = Duration::from_millis(50);

/// What the timer's thread has seen.
#[derive(Default)]
pub struct TimerWatch {
    fired: AtomicU64,
    missing: AtomicU64,
    late: AtomicU64,
}

impl TimerWatch {
    /// Forgets the longest lateness.
    pub fn reset(&self) {
        self.late.store(0, SeqCst);
    }

    /// The figures so far.
    pub fn report(&self) -> Timer {
        Timer {
            fired: self.fired.load(SeqCst),
            missing: self.missing.load(SeqCst),
            late: self.late.load(SeqCst),
        }
    }
}

/// Waits for the timer without end.
pub fn run(watch: &TimerWatch) {
    setup::real_time(Before::Answers);
    let period = PERIOD.as_nanos() as u64;
    let start = monotonic();
    let first = Duration::from_nanos(start + period);
    let setting = Expiration::IntervalDelayed(TimeSpec::from(first), TimeSpec::from(PERIOD));
    let Ok(timer) = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC) else { return };
    if timer.set(setting, TimerSetTimeFlags::TFD_TIMER_ABSTIME).is_err() {
        return;
    }
    let mut fired = 0;
    let mut count = [0; 8];
    loop {
        let before = monotonic();
        if nix::unistd::read(&timer, &mut count) != Ok(count.len()) {
            return;
        }
        let next = start + (fired + 1) * period;
        fired += u64::from_ne_bytes(count);
        watch.late.fetch_max(monotonic().saturating_sub(next), SeqCst);
        watch.fired.store(fired, SeqCst);
        // What was due before the count was read must be in it.
        watch.missing.fetch_max(((before - start) / period).saturating_sub(fired), SeqCst);
    }
}
