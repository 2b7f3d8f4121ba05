//! A running guest seen from outside: its heartbeats, its errors, and how long it stood still.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};

use super::ram::Ram;
use crate::guests::layout;

/// What a guest's error word says is wrong.
const ERRORS: [&str; 11] = [
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
    "the entropy device is not there, or did not do what it was asked",
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
        let deadline = Instant::now() + Duration::from_mins(1);
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
        let deadline = Instant::now() + Duration::from_mins(1);
        while self.online() < vcpus {
            ensure!(Instant::now() < deadline, "{} of {vcpus} vCPUs came up in a minute", self.online());
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
    /// When it had ended, late by at most [`Watcher::STEP`] and what the machine keeps the watcher waiting.
    pub seen: Instant,
    /// How long it was by the guest's time-stamp counter.
    pub length: Duration,
}

/// What a watcher saw.
#[derive(Debug, Clone)]
pub struct Stillness {
    /// The longest gap of each step in which there was one of [`Watcher::SHORTEST`] or more, in order.
    pub gaps: Vec<Gap>,
    /// How long the guest's time-stamp counter itself stood still.
    pub stood: Duration,
    /// Heartbeats counted meanwhile.
    pub beats: u64,
}

impl Stillness {
    /// The longest time that the guest stood still by the host's clock.
    ///
    /// Where the guest's own clock stood too (under QEMU), this is not the sum of both but the longer of them, since
    /// the longest gap may be another one: never more than the truth, and less by what QEMU does outside of its freeze.
    pub fn longest(&self) -> Duration {
        self.longest_of(|_| true)
    }

    /// The same, of a stretch of time.
    pub fn longest_within(&self, from: Instant, to: Instant) -> Duration {
        self.longest_of(|gap| {
            gap.seen >= from && gap.seen.checked_sub(gap.length).is_some_and(|begin| begin <= to)
        })
    }

    fn longest_of(&self, which: impl Fn(&Gap) -> bool) -> Duration {
        let gaps = self.gaps.iter().filter(|gap| which(gap)).map(|gap| gap.length);
        gaps.max().unwrap_or(Watcher::SHORTEST).max(self.stood)
    }
}

/// Watches the heartbeat of a guest's first vCPU until it is asked.
///
/// Nothing that polls the RAM sees finely enough: on a machine with few processors it takes one from the guest and from
/// the handover, and it is itself kept from looking by the kernel for milliseconds. So the guest writes down the
/// longest step of its time-stamp counter between two beats, to a beat (some microseconds), and the watcher only
/// collects and clears that every [`Watcher::STEP`]. Whether that counter itself stood still is seen by how much more it lags
/// behind the host's after than before.
#[derive(Debug)]
pub struct Watcher {
    ram: Arc<Ram>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<(Instant, u64)>>,
    begun: (Instant, u64),
    first: u64,
    lag: u64,
}

impl Watcher {
    /// The time between two looks.
    pub const STEP: Duration = Duration::from_millis(2);

    /// Gaps shorter than this are of the guest's own interrupts and its host's.
    pub const SHORTEST: Duration = Duration::from_micros(100);

    /// Begins to watch.
    pub fn start(ram: Arc<Ram>) -> Self {
        let lag = ram.lag();
        let (begun, first) = ((Instant::now(), host_tsc()), ram.count(0));
        ram.take_gap();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (ram, stop) = (ram.clone(), stop.clone());
            move || {
                let mut steps = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    std::thread::sleep(Self::STEP);
                    steps.push((Instant::now(), ram.take_gap()));
                }
                steps
            }
        });
        Self { ram, stop, thread, begun, first, lag }
    }

    /// Waits until the guest counts, ends, and says what was seen.
    pub fn finish(self) -> anyhow::Result<Stillness> {
        let counts = self.ram.wait_for_heartbeat(1);
        self.stop.store(true, Ordering::Relaxed);
        let steps = self.thread.join().map_err(|_| anyhow::anyhow!("the watcher panicked"))?;
        counts?;
        let (then, then_tsc) = self.begun;
        let tick = then.elapsed().as_secs_f64() / host_tsc().saturating_sub(then_tsc).max(1) as f64;
        let time = |ticks: u64| Duration::from_secs_f64(ticks as f64 * tick);
        let gaps = steps.into_iter().map(|(seen, ticks)| Gap { seen, length: time(ticks) });
        let stood = self.ram.lag().wrapping_sub(self.lag).cast_signed().max(0).cast_unsigned();
        Ok(Stillness {
            gaps: gaps.filter(|gap| gap.length >= Self::SHORTEST).collect(),
            stood: time(stood),
            beats: self.ram.count(0) - self.first,
        })
    }
}

/// How many looks a lag is the median of.
const LOOKS: usize = 101;

impl Ram {
    /// The longest step of the first vCPU's time-stamp counter since this was last asked.
    fn take_gap(&self) -> u64 {
        self.u64(layout::area(0) + layout::GAP).swap(0, Ordering::Relaxed)
    }

    /// By how many ticks the time-stamp counter that the first vCPU wrote last is behind the host's: the median of many
    /// looks, for a look may come late, or between the two halves of what is written.
    fn lag(&self) -> u64 {
        let tsc = self.u64(layout::area(0) + layout::TSC);
        let mut lags: Vec<i64> = (0..LOOKS)
            .map(|_| {
                std::thread::sleep(Duration::from_micros(20));
                host_tsc().wrapping_sub(tsc.load(Ordering::Relaxed)).cast_signed()
            })
            .collect();
        lags.sort_unstable();
        lags[LOOKS / 2].cast_unsigned()
    }
}

/// The host's time-stamp counter.
pub fn host_tsc() -> u64 {
    // SAFETY: every x86-64 processor has RDTSC, and Linux lets user mode run it.
    unsafe { core::arch::x86_64::_rdtsc() }
}
