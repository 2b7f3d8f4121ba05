use guest_init::status::{Checked, ClockWatch, DiskWatch, Heartbeat, Status, Timer};

use super::*;
use crate::lab::net::NetReport;
use crate::lab::report::{GivenBack, Pings, StepReport};
use crate::lab::vsock::VsockReport;

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
        phases: Vec::new(),
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
        locked: Some(0),
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
            edu: None,
            mediated: None,
            roms: Vec::new(),
        }),
        stream: guest_init::stream::StreamStats { lines: 100, ..Default::default() },
        pings: Pings { sent: 9, answered: 9, wrong: 0 },
        powered_off: true,
        ..Report::default()
    }
}

#[test]
fn a_good_report_passes() {
    assert_eq!(judge(&scenario(), &good()), Verdict::default());
}

#[test]
fn each_thing_that_a_guest_may_notice_fails_by_itself() {
    type Spoil = fn(&mut Report);
    let spoils: [(&str, Spoil); 20] = [
        ("2 connections over AF_VSOCK ended", |r| r.steps[0].vsock.as_mut().unwrap().ended = 2),
        ("over AF_VSOCK broke", |r| r.steps[0].vsock.as_mut().unwrap().broken = Some("x".into())),
        ("came out of order", |r| r.steps[0].net.as_mut().unwrap().reordered = 1),
        ("came again", |r| r.steps[0].net.as_mut().unwrap().repeated = 1),
        ("TCP stream broke", |r| r.steps[0].net.as_mut().unwrap().broken = Some("x".into())),
        ("a file system is not whole", |r| r.file_systems.push("e2fsck".into())),
        ("disk vda failed the guest", |r| r.status.as_mut().unwrap().disks[0].errors = 1),
        ("0 flushes", |r| r.status.as_mut().unwrap().disks[0].syncs = 0),
        ("read again at the end", |r| r.status.as_mut().unwrap().disks[0].finished = false),
        ("load on 0 disks of 1", |r| r.status.as_mut().unwrap().disks.clear()),
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
        fails(&scenario(), &report, expected);
    }
}

/// Asserts that there is one thing wrong, and nothing doubtful.
fn fails(scenario: &Scenario, report: &Report, expected: &str) {
    let verdict = judge(scenario, report);
    let Verdict { wrong, doubtful, .. } = &verdict;
    assert!(wrong.len() == 1 && wrong[0].contains(expected), "{expected}: {verdict:?}");
    assert!(doubtful.is_empty() && !verdict.is_passed() && !verdict.is_doubtful(), "{verdict:?}");
}

#[test]
fn what_a_machine_may_be_the_reason_of_fails_and_is_doubtful() {
    type Spoil = fn(&mut Report);
    let spoils: [(&str, Spoil); 10] = [
        ("no message came over AF_VSOCK", |r| r.steps[0].vsock.as_mut().unwrap().messages = 0),
        ("AF_VSOCK for 19000 ms", |r| r.steps[0].vsock.as_mut().unwrap().gap = 19000.0),
        ("no answer to a ping came", |r| r.steps[0].net.as_mut().unwrap().gap = 19000.0),
        ("pings were lost", |r| r.steps[0].net.as_mut().unwrap().lost = 9),
        ("a request to a disk took 29000 ms", |r| r.steps[0].disk = 29000.0),
        ("seen 5000 ms late", |r| r.steps[0].late = 5000.0),
        ("missed for", |r| r.steps[0].gaps[1] = 5000.0),
        (" at last, after ", |r| r.stopped_by = Some("the guest answered at last, after 128 s".into())),
        ("nothing came within 90s", |r| r.stopped_by = Some("nothing came within 90s".into())),
        ("soft lockup", |r| r.messages_after.push("lockup: watchdog: BUG: soft lockup - CPU#1".into())),
    ];
    for (expected, spoil) in spoils {
        let mut report = good();
        spoil(&mut report);
        let verdict = judge(&scenario(), &report);
        let Verdict { wrong, doubtful, .. } = &verdict;
        assert!(doubtful.len() == 1 && doubtful[0].contains(expected), "{expected}: {verdict:?}");
        assert!(wrong.is_empty() && !verdict.is_passed() && verdict.is_doubtful(), "{verdict:?}");
        report.stream.lost = 1;
        let with_more = judge(&scenario(), &report);
        assert_eq!(with_more.is_doubtful(), with_more.of_the_machine, "{expected}");
        assert_eq!(
            with_more.of_the_machine,
            [" at last, after ", "nothing came within 90s", "soft lockup"].contains(&expected)
        );
    }
}

#[test]
fn what_a_stall_leaves_behind_is_doubtful_where_the_stall_itself_is_excused() {
    let mut report = good();
    report.messages_after = vec!["stall: rcu: INFO: rcu_preempt self-detected stall on CPU".into()];
    report.messages_without =
        Some(vec!["lockup: watchdog: BUG: soft lockup".into(), "stall: rcu: another one".into()]);
    report.powered_off = false;
    let verdict = judge(&scenario(), &report);
    assert!(verdict.wrong.len() == 1 && verdict.is_doubtful(), "{verdict:?}");
}

#[test]
fn a_tap_of_several_queues_may_put_answers_out_of_order() {
    let mut report = good();
    report.steps[0].net.as_mut().unwrap().reordered = 64;
    let net = |queues| {
        let mut scenario = scenario();
        scenario.guest.net = toml::from_str(&format!("queues = {queues}")).unwrap();
        scenario
    };
    report.status.as_mut().unwrap().net = Some(Checked { passes: 9, errors: 0, first: None });
    fails(&net(1), &report, "64 answers to pings came out of order");
    assert!(judge(&net(2), &report).is_passed());
}

fn with_assigned() -> (Scenario, Report) {
    let scenario = "about = 'x'\nbound = 1\nsteps = ['transfer', 'poweroff']\n[host]\nkernel = 'lab'\nmemory = '3G'\ncpus = 1\n[guest]\nkernel = 'lab'\ncpus = 1\nmemory = '1G'\nassigned = [{ size-mib = 1, iommufd = false }]";
    let given_back = GivenBack { device: "0000:00:10.0".into(), read: 1 << 20, rom: None, wrong: None };
    let mut report = Report { given_back: vec![given_back], ..good() };
    report.steps.iter_mut().for_each(|step| step.locked = Some(1 << 20));
    (toml::from_str(scenario).unwrap(), report)
}

#[test]
fn an_assigned_disk_counts_as_one_under_load() {
    let (scenario, report) = with_assigned();
    assert_eq!(judge(&scenario, &report), Verdict::default());
}

#[test]
fn each_thing_that_may_happen_to_an_assigned_device_fails_by_itself() {
    type Spoil = fn(&mut Report);
    let spoils: [(&str, Spoil); 8] = [
        ("33 after another", |r| {
            r.steps[1] = StepReport { descriptors: Some(33), ..r.steps[0].clone() };
        }),
        ("1023 KiB are locked", |r| r.steps[0].locked = Some(1023)),
        ("the host's kernel says: exec: vfio", |r| {
            r.host_messages.push("exec: vfio-pci: resetting".into());
        }),
        ("says of its disk", |r| r.messages_before.push("nvme: nvme nvme0: resetting controller".into())),
        ("says of its disk", |r| r.messages_after.push("nvme: nvme nvme0: resetting controller".into())),
        ("of no use to the host", |r| r.given_back[0].wrong = Some("x".into())),
        ("the host read 0 bytes", |r| r.given_back[0].read = 0),
        ("0 of 1 devices were given back", |r| r.given_back.clear()),
    ];
    for (expected, spoil) in spoils {
        let (scenario, mut report) = with_assigned();
        spoil(&mut report);
        fails(&scenario, &report, expected);
    }
}

#[test]
fn a_kernel_message_counts_unless_the_run_without_a_handover_shows_its_class() {
    let mut report = good();
    report.messages_after = vec!["stall: rcu: INFO: rcu_preempt self-detected stall on CPU".into()];
    assert!(!judge(&scenario(), &report).is_passed());
    report.messages_without = Some(vec!["stall: rcu: another one".into()]);
    assert!(judge(&scenario(), &report).is_passed());
}

#[test]
fn the_wall_clock_of_a_guest_that_sleeps_may_be_set_right() {
    let mut scenario = scenario();
    scenario.guest.agent = true;
    let mut report = good();
    report.steps[0].wall_drift = 900.0;
    assert!(judge(&scenario, &report).is_passed());
    report.steps[0].wall_drift = 2900.0;
    fails(&scenario, &report, "wall clock went +2900 ms");
    report.steps[0].wall_drift = 0.0;
    report.steps[0].drift = 900.0;
    fails(&scenario, &report, "monotonic clock went +900 ms");
}

#[test]
fn a_connection_that_is_silent_at_the_end_is_doubtful_and_one_that_broke_is_wrong() {
    let judged = |messages, broken: Option<&str>| {
        let net = NetReport { messages, broken: broken.map(str::to_owned), ..NetReport::default() };
        let (mut verdict, step) = (Verdict::default(), scenario().steps[0].to_string());
        peer(&scenario(), &[PeerReport { step, net }], &mut verdict);
        (verdict.wrong.len(), verdict.doubtful.len())
    };
    assert_eq!(judged(9, None), (0, 0));
    assert_eq!(judged(0, None), (0, 1));
    assert_eq!(judged(9, Some("reset")), (1, 0));
}
