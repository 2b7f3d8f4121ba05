//! What in a report is wrong.

use std::collections::BTreeSet;

use guest_init::status::Status;

use super::net::NetReport;
use super::report::{Report, StepReport};
use super::scenario::{Margins, Mode, Scenario, Step};
use super::vsock::VsockReport;

/// Everything in a report that is not as the scenario wants it, each in one sentence. Empty: passed.
pub fn failures(scenario: &Scenario, report: &Report) -> Vec<String> {
    let mut wrong = Vec::new();
    let before = std::iter::once(0.0).chain(report.steps.iter().map(stands));
    for (step, before) in report.steps.iter().zip(before) {
        judge_step(step, before, scenario.margins, &mut wrong);
    }
    if let Some(status) = &report.status {
        judge_status(status, scenario, &mut wrong);
        if let Some(net) = status.net.as_ref().filter(|net| net.errors != 0) {
            let first = net.first.as_deref().unwrap_or("unknown");
            wrong.push(format!("the guest's network failed {} times, first: {first}", net.errors));
        }
        if scenario.guest.net.is_some() && status.net.as_ref().is_none_or(|net| net.passes == 0) {
            wrong.push("the guest answered no message of the TCP stream".into());
        }
        if let Some(vsock) = status.vsock.as_ref().filter(|vsock| vsock.errors != 0) {
            let first = vsock.first.as_deref().unwrap_or("unknown");
            wrong.push(format!("the guest's AF_VSOCK server failed {} times, first: {first}", vsock.errors));
        }
        if scenario.guest.vsock && status.vsock.as_ref().is_none_or(|vsock| vsock.passes == 0) {
            wrong.push("the guest answered no message over AF_VSOCK".into());
        }
        judge_disks(status, report.powered_off, scenario, &mut wrong);
    }
    judge_stream(report, &mut wrong);
    judge_messages(report, &mut wrong);
    wrong.extend(report.file_systems.iter().map(|what| format!("a file system is not whole: {what}")));
    match &report.stopped_by {
        Some(reason) => wrong.push(reason.clone()),
        None => judge_completeness(scenario, report, &mut wrong),
    }
    wrong
}

fn judge_stream(report: &Report, wrong: &mut Vec<String>) {
    let stream = &report.stream;
    for (count, what) in [(stream.lost, "lost"), (stream.repeated, "repeated"), (stream.damaged, "damaged")] {
        if count != 0 {
            wrong.push(format!("{count} lines of the serial console were {what}"));
        }
    }
    let pings = &report.pings;
    if pings.wrong != 0 || pings.answered != pings.sent {
        wrong.push(format!(
            "of {} pings over the serial console {} were answered, {} wrongly",
            pings.sent, pings.answered, pings.wrong
        ));
    }
}

fn judge_messages(report: &Report, wrong: &mut Vec<String>) {
    let known = report.messages_before.iter().chain(report.messages_without.iter().flatten());
    let known: BTreeSet<&str> = known.map(|message| class(message)).collect();
    for message in report.messages_after.iter().filter(|message| !known.contains(class(message))) {
        wrong.push(format!("the guest's kernel says, and does not without a handover: {message}"));
    }
}

/// What must be there in a run that nothing stopped.
fn judge_completeness(scenario: &Scenario, report: &Report, wrong: &mut Vec<String>) {
    let wanted = scenario.steps.iter().flat_map(|step| step.expand()).count();
    if report.steps.len() != wanted {
        wrong.push(format!("{} of {wanted} steps were made", report.steps.len()));
    }
    if report.status.is_none() || report.stream.lines == 0 || report.pings.sent == 0 {
        wrong.push("the guest gave no figures, no lines or no answers".into());
    }
    if scenario.steps.last() == Some(&Step::PowerOff) && !report.powered_off {
        wrong.push("the guest did not power off".into());
    }
}

/// The class that a message of trouble begins with.
fn class(message: &str) -> &str {
    message.split(':').next().unwrap_or_default()
}

/// For how long a guest stands in a step, in milliseconds. In a reboot that is as long as the operator takes to start the
/// new process.
fn stands(step: &StepReport) -> f64 {
    let handed_over = if is_reboot(step) { step.total } else { step.downtime };
    handed_over.unwrap_or(0.0) + step.paused
}

fn is_reboot(step: &StepReport) -> bool {
    step.step.ends_with(&Mode::Reboot.to_string())
}

/// `before`: for how long the guest stood in the step before.
fn judge_step(step: &StepReport, before: f64, margins: Margins, wrong: &mut Vec<String>) {
    let (name, reboot, stands) = (&step.step, is_reboot(step), stands(step));
    let back = *name == Step::RollBack.to_string();
    if step.total.is_some() && step.paused == 0.0 && step.downtime.is_none() && !reboot && !back {
        wrong.push(format!("{name}: no downtime was reported"));
    }
    let allowed = stands + margins.gap_ms as f64;
    if step.gap() > allowed {
        wrong.push(format!(
            "{name}: a heartbeat was missed for {:.0} ms, allowed are {allowed:.0} ms",
            step.gap()
        ));
    }
    if step.late > allowed {
        wrong.push(format!("{name}: a timer was seen {:.0} ms late, allowed are {allowed:.0} ms", step.late));
    }
    for (clock, drift) in [("monotonic", step.drift), ("wall", step.wall_drift)] {
        if drift.abs() > margins.drift_ms as f64 {
            wrong.push(format!("{name}: the guest's {clock} clock went {drift:+.0} ms against the host's"));
        }
    }
    let disk_allowed = stands + margins.disk_ms as f64;
    if step.disk > disk_allowed {
        wrong.push(format!(
            "{name}: a request to a disk took {:.0} ms, allowed are {disk_allowed:.0} ms",
            step.disk
        ));
    }
    if let Some(net) = &step.net {
        judge_net(name, net, (before, stands), reboot, margins, wrong);
    }
    if let Some(vsock) = &step.vsock {
        judge_vsock(step, vsock, stands + margins.net_ms as f64, wrong);
    }
    if step.disconnects != 0 && !reboot {
        wrong.push(format!("{name}: the serial client lost its connection"));
    }
}

fn judge_status(status: &Status, scenario: &Scenario, wrong: &mut Vec<String>) {
    for clock in &status.clocks {
        let (own, cross) = (clock.own_steps, clock.cross_steps);
        if own != 0 || cross != 0 {
            let name = &clock.clock;
            wrong.push(format!(
                "the guest's {name} clock stepped back {own} times on one CPU and {cross} times between CPUs, by up to {}",
                clock.worst
            ));
        }
    }
    let load = |name: &str| scenario.guest.load.iter().any(|load| load == name);
    for (what, checked, on) in [
        ("memory", &status.memory, load("mem")),
        ("registers", &status.registers, load("cpu")),
        ("entropy device", &status.random, load("rng")),
    ] {
        if checked.errors != 0 {
            let first = checked.first.as_deref().unwrap_or("unknown");
            wrong.push(format!("{what} was wrong {} times in the guest, first: {first}", checked.errors));
        }
        if on && checked.passes == 0 {
            wrong.push(format!("the guest made no whole pass over its {what}"));
        }
    }
    if status.heartbeats.len() != scenario.guest.cpus as usize
        || status.heartbeats.iter().any(|h| h.beats == 0)
    {
        wrong.push(format!(
            "not each of {} CPUs had a heartbeat: {:?}",
            scenario.guest.cpus, status.heartbeats
        ));
    }
    if status.timer.missing != 0 || status.timer.fired == 0 {
        wrong.push(format!(
            "the guest's timer fired {} times, missing {}",
            status.timer.fired, status.timer.missing
        ));
    }
}

fn judge_net(
    name: &str,
    net: &NetReport,
    (before, still): (f64, f64),
    reboot: bool,
    margins: Margins,
    wrong: &mut Vec<String>,
) {
    // TCP waits twice as long before each time that it sends again, so it may notice late that the guest is back: in the
    // next step, perhaps.
    for (what, gap, times) in
        [("answer to a ping", net.gap, 1.0), ("message of the TCP stream", net.stream_gap, 2.0)]
    {
        let allowed = still.max(before) * times + margins.net_ms as f64;
        if gap > allowed {
            wrong.push(format!("{name}: no {what} came for {gap:.0} ms, allowed are {allowed:.0} ms"));
        }
    }
    // A ping is sent every 2 ms: so many may be lost as the guest stood still for.
    let excused = (still / 2.0).ceil() as u64;
    if net.lost > excused {
        wrong.push(format!("{name}: {} pings were lost, {excused} by the downtime", net.lost));
    }
    // A tap with several queues that is opened again may spread a flow anew: what waited in one queue for the guest to go on
    // is overtaken by what comes by another.
    if net.reordered > if reboot { excused } else { 0 } {
        wrong.push(format!("{name}: {} answers to pings came out of order or again", net.reordered));
    }
    if let Some(what) = &net.broken {
        wrong.push(format!("{name}: the TCP stream broke: {what}"));
    }
}

/// Connections may end with a handover, and with nothing else; new ones are made at once.
fn judge_vsock(step: &StepReport, vsock: &VsockReport, allowed: f64, wrong: &mut Vec<String>) {
    let name = &step.step;
    // A guest that was paused may still be waited for when the step ends: the next step's gap says for how long.
    if vsock.messages == 0 && step.paused == 0.0 {
        wrong.push(format!("{name}: no message came over AF_VSOCK"));
    }
    if vsock.gap > allowed {
        let gap = vsock.gap;
        wrong.push(format!(
            "{name}: no message came over AF_VSOCK for {gap:.0} ms, allowed are {allowed:.0} ms"
        ));
    }
    // An exec is two handovers.
    let excused = match step.total {
        None => 0,
        Some(_) if *name == Step::RollBack.to_string() => 0,
        Some(_) if name.ends_with(&Mode::Exec.to_string()) => 2,
        Some(_) => 1,
    };
    if vsock.ended > excused {
        let how = vsock.how.as_deref().unwrap_or("unknown");
        wrong.push(format!(
            "{name}: {} connections over AF_VSOCK ended, excused are {excused}: {how}",
            vsock.ended
        ));
    }
    if let Some(what) = &vsock.broken {
        wrong.push(format!("{name}: the stream over AF_VSOCK broke: {what}"));
    }
}

fn judge_disks(status: &Status, powered_off: bool, scenario: &Scenario, wrong: &mut Vec<String>) {
    if status.disks.len() != scenario.guest.disks.len() {
        wrong.push(format!(
            "the guest put load on {} disks of {}",
            status.disks.len(),
            scenario.guest.disks.len()
        ));
    }
    for disk in &status.disks {
        let name = &disk.disk;
        if disk.errors != 0 {
            let first = disk.first.as_deref().unwrap_or("unknown");
            wrong.push(format!("disk {name} failed the guest {} times, first: {first}", disk.errors));
        }
        if disk.writes == 0 || disk.reads == 0 || disk.syncs == 0 {
            wrong.push(format!(
                "disk {name} made {} writes, {} reads, {} flushes",
                disk.writes, disk.reads, disk.syncs
            ));
        }
        if powered_off && !disk.finished {
            wrong.push(format!("not all that disk {name} acknowledged was read again at the end"));
        }
    }
}

#[cfg(test)]
mod tests {
    use guest_init::status::{Checked, ClockWatch, DiskWatch, Heartbeat, Timer};

    use super::super::report::Pings;
    use super::*;

    fn scenario() -> Scenario {
        toml::from_str(
            "about = 'x'\nbound = 1\nsteps = ['transfer', 'poweroff']\n[guest]\nkernel = 'lab'\ncpus = 1\nmemory = '1G'\ndisks = [{ size-mib = 1 }]",
        )
        .unwrap()
    }

    fn step(name: &str) -> StepReport {
        StepReport {
            step: name.into(),
            downtime: Some(5.0),
            total: Some(100.0),
            paused: 0.0,
            gaps: vec![20.0, 30.0],
            late: 25.0,
            drift: 0.1,
            wall_drift: -0.1,
            disk: 35.0,
            net: Some(NetReport::default()),
            vsock: Some(VsockReport { messages: 9, ..VsockReport::default() }),
            disconnects: 0,
            descriptors: Some(30),
        }
    }

    fn good() -> Report {
        let checked = Checked { passes: 3, errors: 0, first: None };
        let clock = ClockWatch { clock: "tsc".into(), own_steps: 0, cross_steps: 0, worst: 0 };
        Report {
            steps: vec![step("transfer"), StepReport { total: None, ..step("poweroff") }],
            status: Some(Status {
                monotonic: 1,
                realtime: 1,
                clocksource: "kvm-clock".into(),
                clockevent: "lapic".into(),
                heartbeats: vec![Heartbeat { beats: 9, gap: 1, gap_at: 1 }],
                clocks: vec![clock],
                memory: checked.clone(),
                registers: checked.clone(),
                random: checked,
                timer: Timer { fired: 9, missing: 0, late: 1 },
                kernel_messages: 0,
                disks: vec![DiskWatch {
                    disk: "vda".into(),
                    writes: 9,
                    reads: 9,
                    syncs: 1,
                    longest: 1,
                    errors: 0,
                    first: None,
                    finished: true,
                }],
                net: None,
                vsock: None,
            }),
            stream: guest_init::stream::StreamStats { lines: 100, ..Default::default() },
            pings: Pings { sent: 9, answered: 9, wrong: 0 },
            powered_off: true,
            ..Report::default()
        }
    }

    #[test]
    fn a_good_report_passes() {
        assert_eq!(failures(&scenario(), &good()), Vec::<String>::new());
    }

    #[test]
    fn each_thing_that_a_guest_may_notice_fails_by_itself() {
        type Spoil = fn(&mut Report);
        let spoils: [(&str, Spoil); 26] = [
            ("no message came over AF_VSOCK", |r| r.steps[0].vsock.as_mut().unwrap().messages = 0),
            ("AF_VSOCK for 9000 ms", |r| r.steps[0].vsock.as_mut().unwrap().gap = 9000.0),
            ("2 connections over AF_VSOCK ended", |r| r.steps[0].vsock.as_mut().unwrap().ended = 2),
            ("over AF_VSOCK broke", |r| r.steps[0].vsock.as_mut().unwrap().broken = Some("x".into())),
            ("no answer to a ping came", |r| r.steps[0].net.as_mut().unwrap().gap = 9000.0),
            ("pings were lost", |r| r.steps[0].net.as_mut().unwrap().lost = 9),
            ("out of order", |r| r.steps[0].net.as_mut().unwrap().reordered = 1),
            ("TCP stream broke", |r| r.steps[0].net.as_mut().unwrap().broken = Some("x".into())),
            ("a request to a disk took 29000 ms", |r| r.steps[0].disk = 29000.0),
            ("a file system is not whole", |r| r.file_systems.push("e2fsck".into())),
            ("disk vda failed the guest", |r| r.status.as_mut().unwrap().disks[0].errors = 1),
            ("0 flushes", |r| r.status.as_mut().unwrap().disks[0].syncs = 0),
            ("read again at the end", |r| r.status.as_mut().unwrap().disks[0].finished = false),
            ("load on 0 disks of 1", |r| r.status.as_mut().unwrap().disks.clear()),
            ("seen 5000 ms late", |r| r.steps[0].late = 5000.0),
            ("missed for", |r| r.steps[0].gaps[1] = 5000.0),
            ("monotonic clock went", |r| r.steps[0].drift = -900.0),
            ("wall clock went", |r| r.steps[0].wall_drift = 900.0),
            ("lost its connection", |r| r.steps[0].disconnects = 1),
            ("no downtime", |r| r.steps[0].downtime = None),
            ("lines of the serial console were repeated", |r| r.stream.repeated = 1),
            ("pings", |r| r.pings.answered = 8),
            ("steps were made", |r| drop(r.steps.pop())),
            ("did not power off", |r| r.powered_off = false),
            ("registers was wrong", |r| r.status.as_mut().unwrap().registers.errors = 1),
            ("stepped back", |r| r.status.as_mut().unwrap().clocks[0].cross_steps = 1),
        ];
        for (expected, spoil) in spoils {
            let mut report = good();
            spoil(&mut report);
            let wrong = failures(&scenario(), &report);
            assert!(wrong.len() == 1 && wrong[0].contains(expected), "{expected}: {wrong:?}");
        }
    }

    #[test]
    fn a_kernel_message_counts_unless_the_run_without_a_handover_shows_its_class() {
        let mut report = good();
        report.messages_after = vec!["stall: rcu: INFO: rcu_preempt self-detected stall on CPU".into()];
        assert_eq!(failures(&scenario(), &report).len(), 1);
        report.messages_without = Some(vec!["stall: rcu: another one".into()]);
        assert!(failures(&scenario(), &report).is_empty());
    }
}
