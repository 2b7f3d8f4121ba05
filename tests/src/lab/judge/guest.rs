//! What is wrong with a guest's own figures.

use guest_init::status::{Checked, Status};

use super::verdict::Verdict;
use crate::lab::scenario::Scenario;

/// What shows a guest's load, with the name that this has in a scenario.
pub fn loads(status: &Status) -> [(&'static str, &Checked, &'static str); 3] {
    [
        ("memory", &status.memory, "mem"),
        ("registers", &status.registers, "cpu"),
        ("entropy device", &status.random, "rng"),
    ]
}

pub(super) fn figures(status: &Status, scenario: &Scenario, verdict: &mut Verdict) {
    for clock in &status.clocks {
        let (own, cross) = (clock.own_steps, clock.cross_steps);
        if own != 0 || cross != 0 {
            let name = &clock.clock;
            verdict.wrong.push(format!(
                "the guest's {name} clock stepped back {own} times on one CPU and {cross} times between CPUs, by up to {}",
                clock.worst
            ));
        }
    }
    for (what, checked, load) in loads(status) {
        let on = scenario.guest.load.iter().any(|name| name == load);
        if checked.errors != 0 {
            let first = checked.first.as_deref().unwrap_or("unknown");
            verdict
                .wrong
                .push(format!("{what} was wrong {} times in the guest, first: {first}", checked.errors));
        }
        if on && checked.passes == 0 {
            verdict.doubtful.push(format!("the guest made no whole pass over its {what}"));
        }
    }
    if status.heartbeats.len() != scenario.guest.cpus as usize
        || status.heartbeats.iter().any(|h| h.beats == 0)
    {
        verdict.wrong.push(format!(
            "not each of {} CPUs had a heartbeat: {:?}",
            scenario.guest.cpus, status.heartbeats
        ));
    }
    if status.timer.missing != 0 || status.timer.fired == 0 {
        verdict.wrong.push(format!(
            "the guest's timer fired {} times, missing {}",
            status.timer.fired, status.timer.missing
        ));
    }
}

pub(super) fn disks(status: &Status, powered_off: bool, scenario: &Scenario, verdict: &mut Verdict) {
    let disks = scenario.guest.disks.len() + scenario.guest.assigned.len();
    if status.disks.len() != disks {
        verdict.wrong.push(format!("the guest put load on {} disks of {disks}", status.disks.len()));
    }
    for disk in &status.disks {
        let name = &disk.disk;
        if disk.errors != 0 {
            let first = disk.first.as_deref().unwrap_or("unknown");
            verdict.wrong.push(format!("disk {name} failed the guest {} times, first: {first}", disk.errors));
        }
        if disk.writes == 0 || disk.reads == 0 || disk.syncs == 0 {
            verdict.wrong.push(format!(
                "disk {name} made {} writes, {} reads, {} flushes",
                disk.writes, disk.reads, disk.syncs
            ));
        }
        if powered_off && !disk.finished {
            verdict.wrong.push(format!("not all that disk {name} acknowledged was read again at the end"));
        }
    }
}
