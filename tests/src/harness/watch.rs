//! A running guest seen from outside: its heartbeats, its errors, and how long it stood still.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};

use super::ram::Ram;
use crate::guests::layout;

/// What a guest's error word says is wrong.
const ERRORS: [&str; 10] = [
    "nothing",
    "an exception was raised",
    "the time-stamp counter went back",
    "its count is not what it wrote",
    "a general register changed",
    "a debug register changed",
    "an MSR changed",
    "the floating-point state changed",
    "RAM changed",
    "the ROM changed",
];

impl Ram {
    /// How often a vCPU counted.
    pub fn count(&self, vcpu: u64) -> u64 {
        self.u64(layout::area(vcpu) + layout::COUNT).load(Ordering::Relaxed)
    }

    /// How many timer interrupts a vCPU took.
    pub fn ticks(&self, vcpu: u64) -> u64 {
        self.u64(layout::area(vcpu) + layout::TICKS).load(Ordering::Relaxed)
    }

    /// How many rounds of checks a vCPU went through.
    pub fn sweeps(&self, vcpu: u64) -> u64 {
        self.u64(layout::area(vcpu) + layout::SWEEPS).load(Ordering::Relaxed)
    }

    /// How many vCPUs came up.
    pub fn online(&self) -> u64 {
        if self.u64(layout::STATUS).load(Ordering::Relaxed) != layout::MAGIC {
            return 0;
        }
        u64::from(self.u32(layout::STATUS + layout::ONLINE).load(Ordering::Relaxed))
    }

    /// What a vCPU found wrong, if it did.
    pub fn error(&self, vcpu: u64) -> Option<String> {
        let word = |offset| self.u32(layout::area(vcpu) + offset).load(Ordering::Relaxed);
        let error = word(layout::ERROR) as usize;
        let found = self.u64(layout::area(vcpu) + layout::FOUND).load(Ordering::Relaxed);
        (error != 0).then(|| {
            let what = ERRORS.get(error).copied().unwrap_or("an error without a name");
            format!("vCPU {vcpu}: {what}: which {:#x}, found {found:#x}", word(layout::DETAIL))
        })
    }

    /// Fails with the first thing that a vCPU found wrong.
    pub fn check(&self, vcpus: u64) -> anyhow::Result<()> {
        match (0..vcpus).find_map(|vcpu| self.error(vcpu)) {
            Some(error) => bail!("the guest found an error: {error}"),
            None => Ok(()),
        }
    }

    /// Waits until every vCPU's `word` has grown by `steps`, and nothing is wrong.
    pub fn wait_for(
        &self,
        what: &str,
        vcpus: u64,
        steps: u64,
        word: fn(&Self, u64) -> u64,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let before: Vec<u64> = (0..vcpus).map(|vcpu| word(self, vcpu)).collect();
        loop {
            self.check(vcpus)?;
            let slow = (0..vcpus).find(|&vcpu| word(self, vcpu) < before[vcpu as usize] + steps);
            let Some(vcpu) = slow else { return Ok(()) };
            ensure!(
                Instant::now() < deadline,
                "vCPU {vcpu}: {what} went from {} to {} in 20 s; expected {steps} more",
                before[vcpu as usize],
                word(self, vcpu)
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until every vCPU is up and counts.
    pub fn wait_for_heartbeat(&self, vcpus: u64) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.online() < vcpus {
            ensure!(Instant::now() < deadline, "{} of {vcpus} vCPUs came up in 20 s", self.online());
            std::thread::sleep(Duration::from_millis(1));
        }
        self.wait_for("its count", vcpus, 100, Self::count)
    }

    /// Fails unless the guest stands still for a while.
    pub fn stands_still(&self, vcpus: u64, while_: Duration) -> anyhow::Result<()> {
        let before: Vec<u64> = (0..vcpus).map(|vcpu| self.count(vcpu)).collect();
        std::thread::sleep(while_);
        for vcpu in 0..vcpus {
            let now = self.count(vcpu);
            ensure!(
                now == before[vcpu as usize],
                "vCPU {vcpu} counted from {} to {now}",
                before[vcpu as usize]
            );
        }
        Ok(())
    }
}

/// A time without a heartbeat.
#[derive(Debug, Clone, Copy)]
pub struct Gap {
    /// When the last heartbeat before it was seen.
    pub from: Instant,
    /// When the first heartbeat after it was seen.
    pub to: Instant,
}

impl Gap {
    /// How long it was.
    pub fn length(&self) -> Duration {
        self.to - self.from
    }
}

/// What a watcher saw.
#[derive(Debug, Clone)]
pub struct Stillness {
    /// The times without a heartbeat, in order; those shorter than [`Watcher::SHORTEST`] are left out.
    pub gaps: Vec<Gap>,
    /// The longest time between two looks: a gap is known no finer than this.
    pub blind: Duration,
    /// Heartbeats counted meanwhile.
    pub beats: u64,
}

impl Stillness {
    /// The longest gap of all.
    pub fn longest(&self) -> Duration {
        self.gaps.iter().map(Gap::length).max().unwrap_or(Watcher::SHORTEST)
    }

    /// The longest gap that touches a stretch of time.
    pub fn longest_within(&self, from: Instant, to: Instant) -> Duration {
        let touching = self.gaps.iter().filter(|gap| gap.from <= to && gap.to >= from);
        touching.map(Gap::length).max().unwrap_or(Watcher::SHORTEST)
    }
}

/// Watches the heartbeat of a guest's first vCPU until it is asked.
///
/// It looks every [`Watcher::STEP`], sleeping in between: a watcher that spins would take a processor from the
/// guest and from the handover. Where it may (as root), it runs ahead of all else, so that it is not kept from looking.
/// What is seen is right to a step on the average, whatever stands still.
#[derive(Debug)]
pub struct Watcher {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Stillness>,
}

impl Watcher {
    /// The time between two looks.
    pub const STEP: Duration = Duration::from_micros(50);

    /// Gaps shorter than this are not told from the watcher's own step.
    pub const SHORTEST: Duration = Duration::from_micros(200);

    /// Begins to watch.
    pub fn start(ram: Arc<Ram>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || watch(&ram, &stop)
        });
        Self { stop, thread }
    }

    /// Ends, and says what was seen.
    pub fn finish(self) -> anyhow::Result<Stillness> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the watcher panicked"))
    }
}

fn watch(ram: &Ram, stop: &AtomicBool) -> Stillness {
    // SAFETY: both are requests about this thread alone: exact sleeps instead of the default slack of 50 us, and the
    // lowest real-time priority, which may be refused.
    unsafe {
        libc::prctl(libc::PR_SET_TIMERSLACK, 1_usize, 0_usize, 0_usize, 0_usize);
        libc::sched_setscheduler(0, libc::SCHED_FIFO, &libc::sched_param { sched_priority: 1 });
    }
    let first = ram.count(0);
    let (mut count, mut beat_at) = (first, Instant::now());
    let mut looked_at = beat_at;
    let mut seen = Stillness { gaps: Vec::new(), blind: Duration::ZERO, beats: 0 };
    let note = |gaps: &mut Vec<Gap>, gap: Gap| {
        if gap.length() >= Watcher::SHORTEST {
            gaps.push(gap);
        }
    };
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Watcher::STEP);
        let (now_count, now) = (ram.count(0), Instant::now());
        seen.blind = seen.blind.max(now - looked_at);
        looked_at = now;
        if now_count != count {
            note(&mut seen.gaps, Gap { from: beat_at, to: now });
            (count, beat_at) = (now_count, now);
        }
    }
    note(&mut seen.gaps, Gap { from: beat_at, to: Instant::now() });
    seen.beats = count - first;
    seen
}
