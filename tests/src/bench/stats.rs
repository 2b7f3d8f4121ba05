//! What was measured, and how it is shown.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};
use vmm_core::cpr::Mode;

/// Which one was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// `ours` or `QEMU`.
    pub system: &'static str,
    /// The mode.
    pub mode: Mode,
    /// RAM in MiB, all of it touched.
    pub memory_mib: u64,
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<5} {:<13} {:>6} MiB", self.system, self.mode.name(), self.memory_mib)
    }
}

/// One handover.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// The longest stand-still at the time of its stop.
    pub stop: Duration,
    /// The longest stand-still of the whole of it.
    pub longest: Duration,
    /// The longest stand-still seen just before, with no handover.
    pub noise: Duration,
    /// What the product itself reports.
    pub reported: Option<Duration>,
}

/// All handovers of one.
#[derive(Debug)]
pub struct Results {
    /// Which one.
    pub label: Label,
    /// Its handovers.
    pub samples: Vec<Sample>,
}

pub fn median(values: impl Iterator<Item = Duration>) -> Duration {
    let mut values: Vec<_> = values.collect();
    values.sort_unstable();
    let middle = values.len() / 2;
    match values.get(middle) {
        None => Duration::ZERO,
        Some(&upper) if values.len() % 2 == 1 => upper,
        Some(&upper) => (values[middle - 1] + upper) / 2,
    }
}

pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

impl Results {
    /// Without handovers yet.
    pub fn new(label: Label) -> Self {
        Self { label, samples: Vec::new() }
    }

    /// The median of the stops.
    pub fn median(&self) -> Duration {
        median(self.samples.iter().map(|s| s.stop))
    }

    fn reported(&self) -> Option<Duration> {
        let reported: Option<Vec<_>> = self.samples.iter().map(|s| s.reported).collect();
        reported.filter(|r| !r.is_empty()).map(|r| median(r.into_iter()))
    }

    /// The heading of the lines that `Display` gives.
    pub fn header() -> String {
        format!(
            "{:<30} {:>8} {:>8} {:>8} {:>9} {:>8} {:>8}",
            "", "stop", "min", "max", "reported", "longest", "noise"
        )
    }

    /// For machines; times in microseconds.
    pub fn to_json(&self) -> Value {
        let us = |time: Duration| time.as_micros() as u64;
        let stops: Vec<u64> = self.samples.iter().map(|s| us(s.stop)).collect();
        json!({
            "system": self.label.system,
            "mode": self.label.mode,
            "memory-mib": self.label.memory_mib,
            "stop-median-us": us(self.median()),
            "stop-min-us": stops.iter().min(),
            "stop-max-us": stops.iter().max(),
            "longest-median-us": us(median(self.samples.iter().map(|s| s.longest))),
            "reported-median-us": self.reported().map(us),
            "noise-median-us": us(median(self.samples.iter().map(|s| s.noise))),
            "stops-us": stops,
        })
    }
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stops = || self.samples.iter().map(|s| s.stop);
        write!(
            f,
            "{:<30} {:>8.2} {:>8.2} {:>8.2}",
            self.label.to_string(),
            ms(self.median()),
            ms(stops().min().unwrap_or_default()),
            ms(stops().max().unwrap_or_default())
        )?;
        match self.reported() {
            Some(reported) => write!(f, " {:>9.2}", ms(reported))?,
            None => write!(f, " {:>9}", "-")?,
        }
        let longest = median(self.samples.iter().map(|s| s.longest));
        let noise = median(self.samples.iter().map(|s| s.noise));
        write!(f, " {:>8.2} {:>8.2}", ms(longest), ms(noise))
    }
}
