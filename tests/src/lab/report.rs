//! What was seen in one run of a scenario.

use super::net::NetReport;
use super::operator::OperationReport;
use super::outage::OutageReport;
use super::peer::PeerReport;
use super::vsock::VsockReport;
use guest_init::status::{Rom, Status};
use guest_init::stream::StreamStats;
use serde::{Deserialize, Serialize};
use vmm_core::cpr::report::PhaseTime;

/// Numbers that the guest was asked to echo.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pings {
    /// Numbers sent, from 0.
    pub sent: u64,
    /// Numbers that came back in their order.
    pub answered: u64,
    /// Answers that were not the number expected.
    pub wrong: u64,
}

impl Pings {
    /// Counts an answer.
    pub fn answer(&mut self, number: &str) {
        if number.parse() == Ok(self.answered) {
            self.answered += 1;
        } else {
            self.wrong += 1;
        }
    }
}

/// What was seen of one step. Times are in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// The step, as the scenario has it.
    pub step: String,
    /// The downtime that the command reported.
    pub downtime: Option<f64>,
    /// How long the whole handover took, from the command's start to its end.
    pub total: Option<f64>,
    /// What the command reported of its steps.
    #[serde(default)]
    pub phases: Vec<PhaseTime>,
    /// How long the guest was paused on purpose.
    pub paused: f64,
    /// The longest gap between two heartbeats of each CPU, by the guest's clock.
    pub gaps: Vec<f64>,
    /// The longest time from an expiration of the guest's timer to its thread seeing it.
    pub late: f64,
    /// How much more (or less) the guest's monotonic clock went on than the host's, beyond what the reading itself takes.
    pub drift: f64,
    /// The same of the guest's wall clock.
    pub wall_drift: f64,
    /// The longest time that a request to a disk took, or was out when the step ended.
    #[serde(default)]
    pub disk: f64,
    /// What was seen of the network, if there is one.
    #[serde(default)]
    pub net: Option<NetReport>,
    /// What was seen of the stream over AF_VSOCK, if there is one.
    #[serde(default)]
    pub vsock: Option<VsockReport>,
    /// The client's connections that ended during the step.
    pub disconnects: u64,
    /// Open descriptors of the process that owns the guest.
    pub descriptors: Option<u64>,
    /// KiB of RAM that count as locked by it.
    pub locked: Option<u64>,
}

impl StepReport {
    /// The longest gap between two heartbeats of any CPU.
    pub fn gap(&self) -> f64 {
        self.gaps.iter().copied().fold(0.0, f64::max)
    }
}

impl Report {
    /// The median of each part of all steps of a name, in microseconds, in their order.
    pub fn phases(&self, step: &str) -> Vec<PhaseTime> {
        let made = self.steps.iter().filter(|made| made.step == step);
        medians(&made.flat_map(|step| step.phases.clone()).collect::<Vec<_>>())
    }
}

/// The median of each part, in the order of the first.
pub fn medians(all: &[PhaseTime]) -> Vec<PhaseTime> {
    let mut medians: Vec<PhaseTime> = Vec::new();
    for PhaseTime { phase, .. } in all {
        if medians.iter().all(|median| median.phase != *phase) {
            let same = all.iter().filter(|time| time.phase == *phase);
            let mut times: Vec<_> = same.map(|time| time.us).collect();
            times.sort_unstable();
            medians.push(PhaseTime { phase: phase.clone(), us: times[times.len() / 2] });
        }
    }
    medians
}

/// A device that was assigned, after the guest's end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenBack {
    /// Its PCI address on the host.
    pub device: String,
    /// Bytes that the host read of it with its own driver.
    pub read: u64,
    /// What the host had read in its ROM before, if it has one.
    #[serde(default)]
    pub rom: Option<Rom>,
    /// What kept the host from that, if anything did.
    pub wrong: Option<String>,
}

/// What was seen in one run of a scenario.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// One for each single step.
    pub steps: Vec<StepReport>,
    /// The guest's own figures at the end.
    pub status: Option<Status>,
    /// What happened to the console's lines.
    pub stream: StreamStats,
    /// What happened to the pings.
    pub pings: Pings,
    /// The guest's kernel messages of trouble before the first handover.
    pub messages_before: Vec<String>,
    /// The same, after it.
    pub messages_after: Vec<String>,
    /// The same, of a run of the same length without a handover; made only if there were any after one.
    pub messages_without: Option<Vec<String>>,
    /// What the host's kernel said of assigned devices, each with the step that it was in.
    #[serde(default)]
    pub host_messages: Vec<String>,
    /// The assigned devices, given back to the host.
    #[serde(default)]
    pub given_back: Vec<GivenBack>,
    /// What is wrong with the file systems on its disks after that.
    #[serde(default)]
    pub file_systems: Vec<String>,
    /// What the guest's peer outside its host saw of each step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peer: Vec<PeerReport>,
    /// What outages were made of, where that is what was looked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outage: Vec<OutageReport>,
    /// What became of the operations of a host's operator.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub operations: Vec<OperationReport>,
    /// Whether the guest ended by powering itself off.
    pub powered_off: bool,
    /// What kept the run from going on, if anything did.
    pub stopped_by: Option<String>,
    /// What was seen of the second guest, if there is one.
    #[serde(default)]
    pub second: Option<Box<Self>>,
}
