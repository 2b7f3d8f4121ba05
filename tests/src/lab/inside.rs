//! Takes the guest through the scenario's steps, inside the lab's host.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::console::Console;
use super::disks;
use super::image::SCENARIO;
use super::judge;
use super::net;
use super::owner::{self, Owner};
use super::report::Report;
use super::scenario::{Scenario, Step};
use super::{steps, units};

/// What the guest wrote to its serial port.
const GUEST_CONSOLE: &str = "/run/guest-console.log";

/// What the line with the report begins with.
pub const REPORT_MARK: &str = "@report ";

/// Runs the scenario that lies in the RAM disk and prints its report.
pub fn run() -> Result<()> {
    let scenario = Scenario::read(Path::new(SCENARIO))?;
    println!("host is up: {}", std::fs::read_to_string("/proc/version")?.trim());
    disks::slow_down(&scenario.guest)?;
    if let Some(host) = scenario.host.as_ref().filter(|host| !host.units.is_empty()) {
        units::run(&host.units)?;
    }
    let started = Instant::now();
    let mut report = guest(&scenario);
    // Kernel messages are only held against a handover if the same run without one does not show them.
    if report.stopped_by.is_none()
        && !report.messages_after.is_empty()
        && !judge::failures(&scenario, &report).is_empty()
    {
        println!("the guest's kernel complained: running it as long without a handover");
        report.messages_without =
            Some(guest(&without_handover(&scenario, started.elapsed())).messages_before);
    }
    println!("{REPORT_MARK}{}", serde_json::to_string(&report)?);
    Ok(())
}

/// Prints the last that the guest's console said.
fn show_end_of_console() {
    const LAST: usize = 6000;
    let said = std::fs::read(GUEST_CONSOLE).unwrap_or_default();
    println!("--- the end of {GUEST_CONSOLE}");
    println!("{}", String::from_utf8_lossy(&said[said.len().saturating_sub(LAST)..]));
    println!("---");
}

fn without_handover(scenario: &Scenario, time: Duration) -> Scenario {
    Scenario { steps: vec![Step::Run(time), Step::PowerOff], ..scenario.clone() }
}

fn guest(scenario: &Scenario) -> Report {
    let run = || -> Result<Report> {
        if let Some(net) = &scenario.guest.net {
            net::prepare(net)?;
        }
        let mut owner = Owner::boot(&scenario.guest)?;
        let console = Console::connect(&owner::serial(), Path::new(GUEST_CONSOLE))?;
        let report = steps::run(scenario, &mut owner, &console);
        if report.stopped_by.is_some() {
            owner.show_logs();
        }
        if !report.powered_off {
            show_end_of_console();
        }
        Ok(report)
    };
    run().unwrap_or_else(|error| Report { stopped_by: Some(format!("{error:#}")), ..Report::default() })
}
