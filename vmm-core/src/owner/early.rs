//! A guest that was resumed early: before its host's root file system was there, by a process that its unit takes it from.
//!
//! 1. Such a process says so of itself (`x-cpr-early`), and nobody takes a guest from another one.
//! 2. It is taken by a transfer: whatever goes wrong before the claim leaves it where it was.
//! 3. What is told of the guest then is how it was loaded, with the transfer beside it: that was but the end of it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use super::incoming::{self, Guest, Listening};
use super::{Guest as Here, OwnerError, Shared, lock};
use crate::config::{ChardevConfig, DeviceConfig, MachineConfig};
use crate::cpr::report::Report;
use crate::cpr::transfer::target::{self, TargetError};
use crate::machine::Overrides;
use crate::monitor::client::{Client, ClientError};
use crate::monitor::{Address, Channels, EarlyInfo, HandoverReport, TakenOver};

/// How long the process may take to connect once it was asked to.
const CONNECTED: Duration = Duration::from_secs(30);
/// How long a guest may take to be there that is just being resumed.
const HERE: Duration = Duration::from_mins(1);

/// Why a guest was not taken from the process that had resumed it early.
#[derive(Debug, thiserror::Error)]
#[error("taking the guest from process {pid}, which had resumed it early: {why}")]
pub struct EarlyError {
    pid: u32,
    why: String,
}

/// Refuses what would not come to the unit as the unit has it: this process's input and output are nobody's.
pub(super) fn admit(config: &MachineConfig) -> Result<(), String> {
    let ports = config.devices.iter().filter_map(|device| match device {
        DeviceConfig::VirtioSerial(serial) => Some(serial.console.iter().chain(serial.ports.values())),
        _ => None,
    });
    if ports.flatten().chain([&config.serial]).any(|port| *port == ChardevConfig::Stdio) {
        return Err("a port of it is on stdio, which is its unit's: it waits for that".into());
    }
    Ok(())
}

/// Asks whoever listens at a guest's monitor whether it has resumed that early; `None` where it has not, or nobody listens there.
pub fn find(monitor: &Path) -> Result<Option<EarlyInfo>, ClientError> {
    let deadline = Instant::now() + HERE;
    loop {
        let mut client = match Client::connect(monitor) {
            Err(ClientError::Connect { .. }) => return Ok(None),
            client => client?,
        };
        let info = match client.execute("x-cpr-early", &json!({})) {
            Err(ClientError::Command { .. }) => return Ok(None),
            answer => serde_json::from_value::<EarlyInfo>(answer?)
                .map_err(|error| ClientError::Protocol(format!("x-cpr-early: {error}")))?,
        };
        if info.report.is_some() {
            return Ok(Some(info));
        }
        if Instant::now() > deadline {
            return Err(ClientError::TimedOut(format!("that its guest is there, for {} s", HERE.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Has the process that listens at `monitor` hand its guest over to this one.
pub(super) fn take_over(
    monitor: &Path,
    info: &EarlyInfo,
    overrides: &Overrides,
) -> Result<Guest, OwnerError> {
    let failed = |why: String| EarlyError { pid: info.pid, why };
    let asked = |error: ClientError| match error.command_error() {
        Some(answer) => failed(answer.to_string()),
        None => failed(error.to_string()),
    };
    let socket = meeting(monitor);
    let listening = Listening::on(&socket)?;
    let mut client = Client::connect(monitor).map_err(asked)?;
    let channels = Channels { main: None, cpr: Some(Address::Unix(socket)) }.to_json();
    client.execute("migrate-set-parameters", &json!({"mode": "cpr-transfer"})).map_err(asked)?;
    client.execute("migrate", &json!({"channels": channels})).map_err(asked)?;
    let channel = listening.accept(Instant::now() + CONNECTED).map_err(TargetError::from)?;
    drop(listening);
    let taken = target::take_over(channel, || Err(incoming::no_main()), overrides)
        .map_err(|error| failed(error.to_string()))?;
    let early = info.report.clone().map(|report| came(report, info.since_us, &taken.report));
    Ok(Guest { early, ..Guest::new(taken.machine, taken.fds, taken.monitor) })
}

/// Where both meet: beside the monitor.
fn meeting(monitor: &Path) -> PathBuf {
    monitor.with_extension("takeover")
}

/// How a guest came here that was resumed so long before it was asked for, and then transferred.
fn came(report: HandoverReport, since_us: u64, transfer: &Report) -> HandoverReport {
    let taken_over =
        TakenOver { after_us: since_us, downtime_us: transfer.downtime_us, total_us: transfer.total_us };
    HandoverReport { taken_over: Some(taken_over), ..report }
}

impl Shared {
    /// What a process says that has resumed its guest early.
    pub(super) fn early(&self) -> Option<EarlyInfo> {
        let resumed = lock(self.resumed_early.as_ref()?).clone();
        if matches!(*lock(&self.guest), Here::Gone { .. }) {
            return None;
        }
        let since_us = resumed.as_ref().map_or(0, |(at, _)| at.elapsed().as_micros() as u64);
        Some(EarlyInfo { pid: std::process::id(), since_us, report: resumed.map(|(_, report)| report) })
    }
}
