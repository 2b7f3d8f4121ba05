//! Clocks that must never step back, whichever CPU reads them.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use guest_init::status::ClockWatch;
use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of a clock.
pub fn nanoseconds(clock: ClockId) -> u64 {
    clock_gettime(clock).map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}

/// CLOCK_MONOTONIC in nanoseconds.
pub fn monotonic() -> u64 {
    nanoseconds(ClockId::CLOCK_MONOTONIC)
}

fn tsc() -> u64 {
    // SAFETY: LFENCE and RDTSC are part of every x86-64 CPU.
    unsafe {
        std::arch::x86_64::_mm_lfence();
        std::arch::x86_64::_rdtsc()
    }
}

struct Clock {
    name: &'static str,
    read: fn() -> u64,
    latest: AtomicU64,
    own_steps: AtomicU64,
    cross_steps: AtomicU64,
    worst: AtomicU64,
}

/// What one thread, pinned to one CPU, read last.
pub type OwnReadings = [u64; 4];

/// All clocks that are watched.
pub struct Clocks([Clock; 4]);

impl Clocks {
    /// None has been read yet.
    pub fn new() -> Self {
        let clock = |name, read| Clock {
            name,
            read,
            latest: AtomicU64::new(0),
            own_steps: AtomicU64::new(0),
            cross_steps: AtomicU64::new(0),
            worst: AtomicU64::new(0),
        };
        Self([
            clock("monotonic", monotonic),
            clock("realtime", || nanoseconds(ClockId::CLOCK_REALTIME)),
            clock("boottime", || nanoseconds(ClockId::CLOCK_BOOTTIME)),
            clock("tsc", tsc),
        ])
    }

    /// Reads each clock once and compares with what this thread and all others read before.
    pub fn check(&self, own: &mut OwnReadings) {
        for (clock, own) in self.0.iter().zip(own) {
            let before = clock.latest.load(SeqCst);
            let now = (clock.read)();
            let steps = if now < *own {
                &clock.own_steps
            } else if now < before {
                &clock.cross_steps
            } else {
                clock.latest.fetch_max(now, SeqCst);
                *own = now;
                continue;
            };
            steps.fetch_add(1, SeqCst);
            clock.worst.fetch_max(before.max(*own) - now, SeqCst);
            *own = now;
        }
    }

    /// The steps back so far.
    pub fn report(&self) -> Vec<ClockWatch> {
        let report = |clock: &Clock| ClockWatch {
            clock: clock.name.to_owned(),
            own_steps: clock.own_steps.load(SeqCst),
            cross_steps: clock.cross_steps.load(SeqCst),
            worst: clock.worst.load(SeqCst),
        };
        self.0.iter().map(report).collect()
    }
}
