//! What exec adds to the state.

use serde::{Deserialize, Serialize};

use crate::cpr::Mode;
use crate::cpr::format::{Section, SectionKind};
use crate::cpr::report::{PhaseTime, Report, monotonic_ns};

/// How an exec has gone so far, for the process that will tell of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journey {
    /// `CLOCK_MONOTONIC` when the exec was asked for, in ns.
    pub started_ns: u64,
    /// How long the guest has stood so far, in microseconds; absent if it was not running.
    pub downtime_us: Option<u64>,
    /// The steps so far.
    pub phases: Vec<PhaseTime>,
    /// The stopover process.
    pub stopover: u32,
    /// What the monitor's users have set.
    pub settings: Settings,
}

/// What the monitor's users have set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The mode of the next handover.
    pub mode: Option<Mode>,
    /// The command of the next exec; empty: the binary at our own path.
    pub exec_command: Vec<String>,
    /// Milliseconds from a stop to the claim.
    pub downtime_limit: u64,
    /// Milliseconds for everything before the stop.
    pub prepare_timeout: u64,
    /// Whether RAM stays in place.
    pub ignore_shared: bool,
    /// Whether handovers are told as events.
    pub events: bool,
}

impl Section for Journey {
    const KIND: SectionKind = SectionKind::Journey;
    const VERSION: u16 = 1;
    const OLDEST: u16 = 1;
}

impl Journey {
    /// With the way to or from the stopover added to it: its steps are told as `LEG: STEP`.
    #[must_use]
    pub fn and(mut self, leg: &str, report: &Report) -> Self {
        let step = |time: &PhaseTime| PhaseTime { phase: format!("{leg}: {}", time.phase), us: time.us };
        self.phases.extend(report.phases.iter().map(step));
        self.downtime_us = self.downtime_us.zip(report.downtime_us).map(|(before, now)| before + now);
        self
    }

    /// How the exec went, now that its `last` leg is over.
    pub fn report(self, last: &Report) -> Report {
        Report {
            downtime_us: self.downtime_us,
            total_us: monotonic_ns().saturating_sub(self.started_ns) / 1000,
            phases: self.phases,
            ..last.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leg(downtime_us: Option<u64>) -> Report {
        Report {
            mode: Mode::CprExec,
            downtime_us,
            clock: None,
            total_us: 9,
            phases: vec![PhaseTime { phase: "stop".into(), us: 5 }],
            state_bytes: 1,
            descriptors: 2,
            vcpus: 3,
            ram_kept: 4,
            ram_copied: 0,
        }
    }

    fn journey() -> Journey {
        Journey {
            started_ns: 0,
            downtime_us: Some(0),
            phases: Vec::new(),
            stopover: 1,
            settings: Settings {
                mode: None,
                exec_command: Vec::new(),
                downtime_limit: 0,
                prepare_timeout: 0,
                ignore_shared: true,
                events: false,
            },
        }
    }

    #[test]
    fn the_downtime_of_an_exec_is_that_of_both_ways() {
        let journey = journey().and("away", &leg(Some(700))).and("back", &leg(Some(800)));
        let report = journey.report(&leg(Some(800)));
        assert_eq!(report.downtime_us, Some(1500));
        let names: Vec<_> = report.phases.iter().map(|time| time.phase.as_str()).collect();
        assert_eq!(names, ["away: stop", "back: stop"]);
    }

    #[test]
    fn a_guest_that_was_paused_had_no_downtime() {
        let journey = journey().and("away", &leg(None)).and("back", &leg(None));
        assert_eq!(journey.report(&leg(None)).downtime_us, None);
    }
}
