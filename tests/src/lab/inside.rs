//! Takes the guest through the scenario's steps, inside the lab's host.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::console::Console;
use super::getty::Getty;
use super::host_log::HostLog;
use super::image::SCENARIO;
use super::kexec::{self, Arrival};
use super::meeting::Meeting;
use super::owner::{self, Owner};
use super::paths::GUESTS;
use super::report::Report;
use super::scenario::{Kernel, Scenario, Step};
use super::vfio::{self, Bound};
use super::{assigned, autopsy, dax, disks, judge, misplaced, net, outage, paths, peer, stale, steps, units};

/// How long a guest that fell silent may take to say something when it was handed over once more.
const AFTER_EXAMINATION: Duration = Duration::from_secs(20);

/// What the line with the report begins with.
pub const REPORT_MARK: &str = "@report ";

/// Runs the scenario that lies in the RAM disk and prints its report.
pub fn run() -> Result<()> {
    let scenario = Scenario::read(Path::new(SCENARIO))?;
    println!("host is up: {}", std::fs::read_to_string("/proc/version")?.trim());
    for index in 0..scenario.in_dax().len() {
        let kept = if dax::make(index)? { "was there" } else { "is new" };
        println!("{} {kept}", dax::device(index).display());
    }
    if let Some(host) = scenario.host.as_ref().filter(|host| !host.next.is_empty()) {
        kexec::mount_kept(&scenario)?;
        if host.through && kexec::is_first_arrival()? {
            through(&scenario, host.next[0])?;
        }
        if scenario.guest.dax_offset_mib.is_some() && paths::kept_state_file(GUESTS[1]).exists() {
            misplaced::refuse_all(&scenario)?;
        }
    }
    if !scenario.outage.is_empty() {
        println!("{REPORT_MARK}{}", serde_json::to_string(&outage::run(&scenario))?);
        return Ok(());
    }
    disks::slow_down(&scenario.guest)?;
    if let Some(host) = scenario.host.as_ref().filter(|host| !host.units.is_empty()) {
        units::run(&host.units)?;
    }
    let started = Instant::now();
    let mut report = guest(&scenario);
    // Kernel messages are only held against a handover if the same run without one does not show them.
    let complained = |report: &Report| !report.messages_after.is_empty();
    if report.stopped_by.is_none()
        && (complained(&report) || report.second.as_deref().is_some_and(complained))
        && !judge::judge(&scenario, &report).is_passed()
    {
        println!("a guest's kernel complained: running it as long without a handover");
        let without = guest(&without_handover(&scenario, started.elapsed()));
        report.messages_without = Some(without.messages_before);
        if let (Some(second), Some(without)) = (&mut report.second, without.second) {
            second.messages_without = Some(without.messages_before);
        }
    }
    println!("{REPORT_MARK}{}", serde_json::to_string(&report)?);
    Ok(())
}

/// Leaves guests waiting that have come over a kexec, and goes into a kernel once more, where they must still be.
fn through(scenario: &Scenario, kernel: Kernel) -> Result<()> {
    /// For their keepers to have the next kernel find them, which nobody hears of.
    const PRESERVED: Duration = Duration::from_secs(40);
    fs::create_dir_all(paths::RUNTIME)?;
    fs::create_dir_all(paths::LOGS)?;
    for name in GUESTS.iter().take(1 + usize::from(scenario.second.is_some())) {
        stale::refuse_strange(name)?;
    }
    thread::sleep(PRESERVED);
    match kexec::go(kernel)? {}
}

/// Tells where a guest stands that did not do its steps, and whether a handover more makes it go on.
fn examine(owner: &mut Owner, console: &Console) -> Result<()> {
    let before = console.stats().lines;
    owner.examine()?;
    std::thread::sleep(AFTER_EXAMINATION);
    println!("after one more handover the guest wrote {} lines", console.stats().lines - before);
    Ok(())
}

/// Prints the last that the guest said on one of its consoles, and whether its kernel tells of a fault of the lab's.
fn show_end_of(log: &Path) {
    const LAST: usize = 6000;
    let said = std::fs::read(log).unwrap_or_default();
    if let Some(handler) = autopsy::interrupted_twice(&String::from_utf8_lossy(&said)) {
        println!(
            "the lab's machine gave the guest an interrupt that was not due (in {handler}, with interrupts off)"
        );
    }
    println!("--- the end of {}", log.display());
    println!("{}", String::from_utf8_lossy(&said[said.len().saturating_sub(LAST)..]));
    println!("---");
}

fn without_handover(scenario: &Scenario, time: Duration) -> Scenario {
    Scenario { steps: vec![Step::Run(time), Step::PowerOff], ..scenario.clone() }
}

/// Takes the guests through the steps, their devices assigned before and given back after it.
fn guest(scenario: &Scenario) -> Report {
    let run = || -> Result<Report> {
        let devices = scenario.assigned();
        if devices.is_empty() {
            return Ok(both(scenario, None));
        }
        let addresses = devices.iter().map(|(place, _)| place.to_string()).collect();
        let bound = vfio::bind(devices)?;
        let mut log = HostLog::open(addresses)?;
        let mut report = both(scenario, Some(&mut log));
        report.given_back = bound.into_iter().map(Bound::give_back).collect();
        report.host_messages.extend(log.faults().iter().map(|message| format!("end: {message}")));
        Ok(report)
    };
    run().unwrap_or_else(|error| stopped(&error))
}

fn stopped(error: &anyhow::Error) -> Report {
    Report { stopped_by: Some(format!("{error:#}")), ..Report::default() }
}

/// Takes a guest through the steps, and a second one, if there is one.
fn both(scenario: &Scenario, log: Option<&mut HostLog>) -> Report {
    let Some(second) = scenario.of_second() else {
        return watched(GUESTS[0], scenario, 0, None, log).unwrap_or_else(|error| stopped(&error));
    };
    let (meeting, after) = (Arc::new(Meeting::default()), assigned::kinds(&scenario.guest).len());
    thread::scope(|scope| {
        let other = Arc::clone(&meeting);
        let second = scope.spawn(move || {
            let report = watched(GUESTS[1], &second, after, Some(Arc::clone(&other)), None);
            other.leave();
            report
        });
        let first = watched(GUESTS[0], scenario, 0, Some(Arc::clone(&meeting)), log);
        meeting.leave();
        let second = second.join().unwrap_or_else(|_| bail!("the thread of the second guest panicked"));
        let second = Some(Box::new(second.unwrap_or_else(|error| stopped(&error))));
        Report { second, ..first.unwrap_or_else(|error| stopped(&error)) }
    })
}

/// Boots a guest, with devices of the host's from this one on, and takes it through the steps.
fn watched(
    name: &'static str,
    scenario: &Scenario,
    first_device: usize,
    meeting: Option<Arc<Meeting>>,
    host_log: Option<&mut HostLog>,
) -> Result<Report> {
    if let Some(net) = &scenario.guest.net {
        if scenario.is_bridged() { peer::bridge(net)? } else { net::prepare(net)? }
    }
    fs::create_dir_all(paths::RUNTIME)?;
    fs::create_dir_all(paths::LOGS)?;
    if scenario.host.as_ref().is_some_and(|host| host.ram_on_disk) {
        owner::refuse_ram_on_disk(name, &scenario.guest, first_device)?;
    }
    let (serial, log) = (paths::serial(name), paths::console_log(name));
    let loaded = match &scenario.host {
        Some(host) if !host.next.is_empty() => {
            Arrival::load(name, || Owner::resume_kept(name, &scenario.guest, meeting.clone()))?
        }
        _ => None,
    };
    let (mut owner, console, arrival) = if let Some((mut arrival, owner)) = loaded {
        let heard = std::mem::take(&mut arrival.progress.heard);
        (owner, Console::go_on(&serial, &log, heard)?, Some(arrival))
    } else {
        let owner = Owner::boot(name, &scenario.guest, first_device, meeting)?;
        (owner, Console::connect(&serial, &log)?, None)
    };
    let getty = scenario.guest.root.map(|_| Getty::connect(&paths::tty(name), &paths::tty_log(name)));
    let getty = getty.transpose()?;
    let report = steps::run(scenario, &mut owner, &console, getty.as_ref(), host_log, arrival);
    if report.stopped_by.is_some() {
        owner.show_logs();
        if let Err(error) = examine(&mut owner, &console) {
            println!("the guest was not examined: {error:#}");
        }
    }
    let as_it_should = report.stopped_by.is_none() && scenario.steps.last() == Some(&Step::Failed);
    if !report.powered_off && !as_it_should {
        show_end_of(&paths::console_log(name));
        if getty.is_some() {
            show_end_of(&paths::tty_log(name));
        }
        let serial = paths::serial_log(name);
        if serial.exists() {
            show_end_of(&serial);
        }
    }
    Ok(report)
}
