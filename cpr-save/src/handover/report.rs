//! What a handover came to.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};
use vmm_core::config::ByteSize;
use vmm_core::cpr::Mode;
use vmm_core::monitor::{Basis, HandoverReport, MigrationInfo, RunState};

use super::follow::End;
use crate::guest::Guest;

/// What there is to say about a handover that went well.
pub struct Report {
    /// In full, from a VMM that gives one.
    full: Option<HandoverReport>,
    /// In short, from any.
    info: Option<MigrationInfo>,
    /// The run state of who answered.
    state: Option<RunState>,
    /// Whether it is the source that answered, without its guest.
    pub from_source: bool,
}

/// Asks for the report. What cannot be had is left out: the guest has moved, and that is what counts.
pub fn of(guest: &mut Guest, mode: Mode, end: End) -> Report {
    let full = guest.report().unwrap_or_else(|error| {
        tracing::warn!(error = %error, "the report could not be had");
        None
    });
    let full = full.filter(|report| report.mode == mode);
    let state = guest.run_state().ok();
    Report { full, info: end.info, state, from_source: state == Some(RunState::Postmigrate) }
}

impl Report {
    /// For people.
    pub fn text(&self, mode: Mode) -> String {
        let mut text = format!("{mode}: done");
        if let Some(report) = &self.full {
            text.push_str(&steps(report));
        } else if let Some(info) = &self.info {
            let times = [("setup", info.setup_time), ("total", info.total_time), ("downtime", info.downtime)];
            for (name, ms) in times.into_iter().filter_map(|(name, ms)| Some((name, ms?))) {
                let _ = write!(text, "\n  {name:<12} {:>12}", format!("{ms} ms"));
            }
        }
        text
    }

    /// For people, in a few words.
    pub fn brief(&self) -> String {
        let took = self.full.as_ref().map(|report| format!(" in {}", milliseconds(report.total_us)));
        format!("done{}", took.unwrap_or_default())
    }

    /// For machines.
    pub fn json(&self, mode: Mode) -> Value {
        json!({"mode": mode, "run-state": self.state, "report": self.full, "migration": self.info})
    }
}

/// The steps of a handover and what it moved, each on a line of its own.
pub fn steps(report: &HandoverReport) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = write!(text, "\n  {name:<24} {value:>12}");
    };
    let (of_devices, others): (Vec<_>, Vec<_>) =
        report.phases.iter().partition(|phase| phase.device().is_some());
    for phase in others {
        line(&phase.phase, &milliseconds(phase.us));
    }
    // A device's steps, some in the source and some in the target, add up to what it adds to the downtime.
    let mut devices = BTreeMap::<_, u64>::new();
    for phase in of_devices {
        *devices.entry(phase.device().unwrap_or_default()).or_default() += phase.us;
    }
    for (device, us) in devices {
        line(&format!("device {device}"), &milliseconds(us));
    }
    line("total", &milliseconds(report.total_us));
    let by = match report.clock {
        Some(Basis::HostTsc) => ", by the host's TSC",
        Some(Basis::Boottime) => ", by the host's CLOCK_BOOTTIME",
        Some(Basis::WallClock) => ", by the host's wall clock: its TSC could not be confirmed",
        None => "",
    };
    line("downtime", &format!("{}{by}", report.downtime_us.map_or("not known".to_owned(), milliseconds)));
    if let Some(taken) = &report.taken_over {
        line("taken over after", &milliseconds(taken.after_us));
        line("downtime of that", &taken.downtime_us.map_or("not known".to_owned(), milliseconds));
    }
    let _ = write!(
        text,
        "\nmoved {} bytes of state, {} descriptors, {} vCPUs; {} of RAM kept in place, {} copied",
        report.state_bytes,
        report.descriptors,
        report.vcpus,
        ByteSize(report.ram_kept),
        ByteSize(report.ram_copied),
    );
    text
}

fn milliseconds(us: u64) -> String {
    format!("{}.{:03} ms", us / 1000, us % 1000)
}
