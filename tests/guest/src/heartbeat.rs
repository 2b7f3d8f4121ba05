//! A thread on each CPU that should wake every 10 ms.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use guest_init::status::Heartbeat;

use crate::clocks::{Clocks, monotonic};
use crate::setup::{self, Before};

/// What one CPU's heartbeat has seen.
#[derive(Default)]
pub struct Beats {
    beats: AtomicU64,
    gap: AtomicU64,
    gap_at: AtomicU64,
}

impl Beats {
    /// Forgets the longest gap.
    pub fn reset(&self) {
        self.gap.store(0, SeqCst);
        self.gap_at.store(0, SeqCst);
    }

    /// The figures so far.
    pub fn report(&self) -> Heartbeat {
        Heartbeat {
            beats: self.beats.load(SeqCst),
            gap: self.gap.load(SeqCst),
            gap_at: self.gap_at.load(SeqCst),
        }
    }
}

/// Beats without end on one CPU, reading all clocks at each beat.
pub fn run(beats: &Beats, clocks: &Clocks, cpu: usize) {
    setup::pin(cpu);
    setup::real_time(Before::Answers);
    let mut own = [0; 4];
    let mut last = monotonic();
    loop {
        std::thread::sleep(Duration::from_millis(10));
        clocks.check(&mut own);
        let now = monotonic();
        let gap = now.saturating_sub(last);
        if gap > beats.gap.load(SeqCst) {
            beats.gap.store(gap, SeqCst);
            beats.gap_at.store(now, SeqCst);
        }
        beats.beats.fetch_add(1, SeqCst);
        last = now;
    }
}
