//! What an outage is made of, by how many guests the host has: it goes into its next kernel with a few, then with more.
//!
//! 1. The next kernel is loaded before, as `host-upgrade` does it, and all guests are saved by one command, running.
//! 2. Under the next kernel they are started all at once, as their units would be; the last to say that it is there ends the outage.
//! 3. Each must then count on from where it was, with its RAM as it was, in one process ([`Herd`]).
//! 4. Moments are told by the TSC, which goes on counting: [`Mark`].

use std::convert::Infallible;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use vmm_core::cpr::report::PhaseTime;

use super::herd::Herd;
use super::kexec::{self, Mark, Rate};
use super::report::{Report, medians};
use super::scenario::{Kernel, Scenario};
use super::{init, paths};

/// What an outage is made of, in this order. Ours is the first and the last.
const PHASES: [&str; 5] = ["save", "kernel down", "kernel up", "userspace until load", "load"];
/// Under what name it is written down how far this has got.
const PROGRESS: &str = "outage";

/// One kexec with so many guests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutageReport {
    /// How many there were.
    pub guests: u16,
    /// From the command to the last guest's being there again.
    pub phases: Vec<PhaseTime>,
    /// What the saves reported of their steps: the medians.
    pub saves: Vec<PhaseTime>,
    /// What the loads did.
    pub loads: Vec<PhaseTime>,
    /// How long the guests stood by their own account: the shortest and the longest, in milliseconds.
    pub stood: [f64; 2],
}

impl OutageReport {
    /// How long it took, in microseconds.
    pub fn whole(&self) -> u64 {
        self.phases.iter().map(|phase| phase.us).sum()
    }

    /// How much of that is the product's own part.
    pub fn own(&self) -> u64 {
        [self.phases.first(), self.phases.last()].into_iter().flatten().map(|phase| phase.us).sum()
    }
}

/// What the next kernel has to know.
#[derive(Serialize, Deserialize)]
struct Progress {
    seen: Vec<OutageReport>,
    /// How far each guest had counted.
    counts: Vec<u64>,
    saves: Vec<PhaseTime>,
    started: Mark,
    saved: Mark,
}

/// Goes into one kernel after the other, and under the last one tells of all.
pub fn run(scenario: &Scenario) -> Report {
    let mut report = Report::default();
    if let Err(error) = take_turns(scenario, &mut report.outage) {
        report.stopped_by = Some(format!("{error:#}"));
    }
    report
}

fn take_turns(scenario: &Scenario, seen: &mut Vec<OutageReport>) -> Result<()> {
    let rate = Rate::begin();
    fs::create_dir_all(paths::RUNTIME)?;
    fs::create_dir_all(paths::LOGS)?;
    let mut herd = Herd::new(&scenario.guest)?;
    let arrived = kexec::take_progress::<Progress>(PROGRESS)?;
    let khz = arrived.as_ref().map(|progress| progress.started.khz());
    if let Some(progress) = arrived {
        let guests = progress.counts.len();
        seen.extend(progress.seen.iter().cloned());
        seen.push(
            arrive(&mut herd, progress).with_context(|| format!("after the kexec with guests: {guests}"))?,
        );
    }
    let kernels = scenario.host.iter().flat_map(|host| &host.next);
    let Some((guests, kernel)) = scenario.outage.iter().zip(kernels).nth(seen.len()) else {
        return herd.end();
    };
    herd.grow(usize::from(*guests))?;
    println!("guests up: {guests}");
    match leave(&mut herd, *kernel, khz.unwrap_or_else(|| rate.khz()), seen)? {}
}

/// Saves all guests and goes into the next kernel.
fn leave(herd: &mut Herd, kernel: Kernel, khz: f64, seen: &[OutageReport]) -> Result<Infallible> {
    kexec::load_next(kernel)?;
    let counts = herd.counts()?;
    let started = Mark::now(khz);
    let saves = herd.save()?;
    let saved = Mark::now(khz);
    let progress = Progress { seen: seen.to_vec(), counts, saves: medians(&saves), started, saved };
    kexec::keep_progress(PROGRESS, &progress)?;
    kexec::go_into_loaded()
}

/// Loads all guests, and looks whether they are what they were.
fn arrive(herd: &mut Herd, progress: Progress) -> Result<OutageReport> {
    let Progress { counts, saves, started, saved, .. } = progress;
    let khz = started.khz();
    let [booted, first] = [Duration::ZERO, init::started()?].map(|at| Mark::of_this_kernel(at, khz));
    let loading = Mark::now(khz);
    herd.start(counts.len())?;
    let marks = [started, saved, booted?, first?, loading, Mark::now(khz)];
    let phases = Mark::phases(&PHASES, &marks);
    herd.check(&counts)?;
    let (loads, stood) = herd.loads()?;
    let [least, most] = [f64::min, f64::max].map(|which| stood.iter().copied().reduce(which));
    let stood = [least.unwrap_or_default(), most.unwrap_or_default()];
    Ok(OutageReport { guests: counts.len() as u16, phases, saves, loads: medians(&loads), stood })
}
