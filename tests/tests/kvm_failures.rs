//! What goes wrong before the target's claim leaves the guest running in the source, says why, and is over.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cpr_tests::guests::{Guest, Mode};
use cpr_tests::harness::host::{Host, Outcome, binary};
use cpr_tests::harness::proxy::{Action, Crossing, Moment, Proxy, Side};
use cpr_tests::harness::runner::{Skipped, Tier};
use cpr_tests::harness::vm::{Spec, Vm};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use vmm_core::cpr::fds::FdName;
use vmm_core::cpr::transfer::message::{Descriptors, Hello, Message, Ready, State, Welcome};

cpr_tests::tests!(
    Tier::Kvm,
    a_transfer_to_where_nobody_listens_fails,
    a_target_killed_at_each_step_before_its_claim_leaves_the_guest_in_the_source,
    a_target_that_hangs_at_each_step_before_its_claim_leaves_the_guest_in_the_source,
    a_channel_closed_at_each_step_before_the_claim_leaves_the_guest_in_the_source,
    a_monitors_client_killed_half_way_does_not_harm_the_guest,
    a_cancel_in_every_phase_leaves_the_guest_in_the_source,
    another_versions_hello_is_refused_and_both_versions_named,
    a_missing_extra_doubled_wrong_or_resized_descriptor_is_refused_by_name,
    a_damaged_frame_is_refused,
    a_repeated_frame_is_refused,
    a_target_without_a_feature_the_guest_was_shown_refuses_by_name,
    a_file_without_room_or_in_a_directory_that_cannot_be_written_fails,
    a_reboot_that_would_lose_ram_is_refused_before_the_guest_stops,
    what_would_not_outlive_a_kexec_is_refused_before_the_guest_stops,
    what_no_live_update_preserves_is_refused_before_the_guest_stops,
    an_exec_of_a_command_that_does_not_exist_fails,
    an_exec_of_a_command_that_exits_at_once_fails,
    an_exec_of_a_command_that_hangs_fails,
    an_exec_of_a_command_that_cannot_read_the_format_fails,
    an_exec_whose_new_binary_cannot_load_after_all_comes_back_to_the_old_one,
    an_exec_whose_new_binary_ends_after_all_leaves_the_guest_running,
    an_exec_whose_new_binary_hangs_after_all_leaves_the_guest_running,
);

fn boot(host: &Host) -> anyhow::Result<Vm<'_>> {
    Vm::boot(host, Spec::new(Guest::patterns(Mode::Long), 2))
}

/// The guest is where it was, as if nothing had happened, and a handover that is right succeeds.
fn as_if_nothing_had_happened(vm: &mut Vm<'_>) -> anyhow::Result<()> {
    vm.process.must_run()?;
    vm.becomes("running")?;
    vm.goes_on()?;
    vm.transfer().context("a right handover after the failure")?;
    vm.goes_on()
}

fn a_transfer_to_where_nobody_listens_fails() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = boot(&host)?;
    let nobody = host.fresh("nobody");
    let outcome = vm.transfer_to(&nobody)?;
    ensure!(matches!(outcome.code, 1 | 3), "cpr-save ended with {}: {}", outcome.code, outcome.facts);
    outcome.clone().must_say(outcome.code, &nobody.display().to_string())?;
    as_if_nothing_had_happened(&mut vm)
}

/// Hands a guest over through a proxy that does something with each frame.
fn attacked(
    vm: &Vm<'_>,
    host: &Host,
    more: &[&str],
    attack: impl FnOnce(i32) -> Box<dyn FnMut(&mut Crossing) -> Action + Send>,
) -> anyhow::Result<Outcome> {
    let target = host.target()?;
    let proxy = Proxy::start(host.fresh("proxy"), &target.socket, attack(target.process.pid()))?;
    let to = format!("unix:{}", proxy.socket.display());
    let mut arguments = vec!["--to", &to];
    arguments.extend(more);
    vm.save("transfer", &arguments)
}

/// The steps of the protocol up to the state, as (who sends, its kind, its name).
const STEPS: [(Side, u16, &str); 6] = [
    (Side::Source, Hello::KIND, Hello::NAME),
    (Side::Target, Welcome::KIND, Welcome::NAME),
    (Side::Source, Descriptors::KIND, Descriptors::NAME),
    (Side::Source, vmm_core::cpr::transfer::message::Machine::KIND, "Machine"),
    (Side::Target, Ready::KIND, Ready::NAME),
    (Side::Source, State::KIND, State::NAME),
];

/// Does something to the transfer at each step, before the frame and after it, and expects the guest to stay.
///
/// After the state has reached the target it may claim at any time: that is not tried here.
fn at_each_step(more: &[&str], what: impl Fn(i32) -> Action + Send + Copy + 'static) -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = boot(&host)?;
    for (side, kind, name) in STEPS {
        for moment in [Moment::Before, Moment::After] {
            if kind == State::KIND && moment == Moment::After {
                continue;
            }
            attacked(&vm, &host, more, |target| {
                Box::new(move |crossing| {
                    let here =
                        crossing.from == side && crossing.frame.kind == kind && crossing.moment == moment;
                    if here { what(target) } else { Action::Pass }
                })
            })?
            .must_be(1)
            .and_then(|_| vm.becomes("running"))
            .and_then(|()| vm.goes_on())
            .with_context(|| format!("{moment:?} {name}"))?;
        }
    }
    as_if_nothing_had_happened(&mut vm)
}

fn a_target_killed_at_each_step_before_its_claim_leaves_the_guest_in_the_source() -> anyhow::Result<()> {
    at_each_step(&[], |target| {
        let _ = kill(Pid::from_raw(target), Signal::SIGKILL);
        // What was under way when it died does not reach it.
        std::thread::sleep(Duration::from_millis(20));
        Action::Pass
    })
}

fn a_target_that_hangs_at_each_step_before_its_claim_leaves_the_guest_in_the_source() -> anyhow::Result<()> {
    at_each_step(&["--timeout", "1", "--downtime-limit", "300"], |target| {
        let _ = kill(Pid::from_raw(target), Signal::SIGSTOP);
        std::thread::sleep(Duration::from_millis(20));
        Action::Pass
    })
}

fn a_channel_closed_at_each_step_before_the_claim_leaves_the_guest_in_the_source() -> anyhow::Result<()> {
    at_each_step(&[], |_| Action::Close)
}

fn a_monitors_client_killed_half_way_does_not_harm_the_guest() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = boot(&host)?;
    for (side, kind, name) in STEPS {
        let target = host.target()?;
        let mut source = vm.monitor()?;
        let reached = Arc::new(AtomicU32::new(0));
        let proxy = Proxy::start(host.fresh("proxy"), &target.socket, {
            let reached = reached.clone();
            move |crossing| {
                let here =
                    crossing.from == side && crossing.frame.kind == kind && crossing.moment == Moment::Before;
                if here {
                    reached.store(1, Ordering::Release);
                    // Long enough for the client to be dead before the handover goes on.
                    std::thread::sleep(Duration::from_millis(100));
                }
                Action::Pass
            }
        })?;
        let save =
            host.start_save(&["transfer", &vm.name, "--to", &format!("unix:{}", proxy.socket.display())])?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while reached.load(Ordering::Acquire) == 0 {
            ensure!(Instant::now() < deadline, "{name} never crossed: {}", save.process.log());
            std::thread::sleep(Duration::from_millis(1));
        }
        save.process.signal(Signal::SIGKILL)?;
        drop(save);
        // The handover goes on without its client, or is given up; the guest is in one place and runs.
        std::thread::sleep(Duration::from_millis(500));
        vm.goes_on().with_context(|| format!("with the client killed at {name}"))?;
        let status = source.execute("query-status", &json!({}))?;
        match status["status"].as_str() {
            Some("running") => {}
            Some("postmigrate") => vm.process = target.process,
            _ => anyhow::bail!("with the client killed at {name} the source is {status}"),
        }
        vm.becomes("running")?;
        vm.goes_on()?;
    }
    as_if_nothing_had_happened(&mut vm)
}

fn a_cancel_in_every_phase_leaves_the_guest_in_the_source() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = boot(&host)?;
    for (side, kind, name) in STEPS {
        let mut monitor = vm.monitor()?;
        attacked(&vm, &host, &[], |_| {
            Box::new(move |crossing| {
                if crossing.from == side && crossing.frame.kind == kind && crossing.moment == Moment::Before {
                    let _ = monitor.execute("migrate_cancel", &json!({}));
                    return Action::Hang;
                }
                Action::Pass
            })
        })?
        .must_say(1, "cancel")
        .and_then(|_| vm.becomes("running"))
        .and_then(|()| vm.goes_on())
        .with_context(|| format!("cancelled at {name}"))?;
        let status = vm.ask("query-migrate")?;
        ensure!(status["status"] == "cancelled", "cancelled at {name}, the migration is {status}");
    }
    as_if_nothing_had_happened(&mut vm)
}

/// Changes the first frame of a kind that the source sends.
fn changed(
    kind: u16,
    mut change: impl FnMut(&mut Crossing) -> Action + Send + 'static,
) -> Box<dyn FnMut(&mut Crossing) -> Action + Send> {
    Box::new(move |crossing| {
        let here = crossing.from == Side::Source && crossing.frame.kind == kind;
        if here && crossing.moment == Moment::Before { change(crossing) } else { Action::Pass }
    })
}

fn another_versions_hello_is_refused_and_both_versions_named() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = boot(&host)?;
    attacked(&vm, &host, &[], |_| {
        changed(Hello::KIND, |crossing| {
            // The version is the first field.
            crossing.frame.payload[0] = 99;
            Action::Pass
        })
    })?
    .must_say(1, "99")?;
    as_if_nothing_had_happened(&mut vm)
}

/// Changes the names and descriptors that the source sends.
fn descriptors(
    mut change: impl FnMut(&mut Vec<FdName>, &mut Vec<OwnedFd>) + Send + 'static,
) -> Box<dyn FnMut(&mut Crossing) -> Action + Send> {
    changed(Descriptors::KIND, move |crossing| {
        if let Ok(mut message) = postcard::from_bytes::<Descriptors>(&crossing.frame.payload) {
            change(&mut message.names, &mut crossing.frame.fds);
            crossing.frame.payload = postcard::to_stdvec(&message).unwrap_or_default();
        }
        Action::Pass
    })
}

fn position(names: &[FdName], name: &str) -> usize {
    names
        .iter()
        .position(|n| n.name == name)
        .unwrap_or_else(|| panic!("no descriptor is called {name}: {names:?}"))
}

fn memfd(size: u64) -> OwnedFd {
    let fd = memfd_create("replaced", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).expect("a memfd");
    File::from(fd.try_clone().expect("a duplicate")).set_len(size).expect("its size");
    fd
}

fn a_missing_extra_doubled_wrong_or_resized_descriptor_is_refused_by_name() -> anyhow::Result<()> {
    type Change = fn(&mut Vec<FdName>, &mut Vec<OwnedFd>);
    let changes: [(&str, &str, Change); 7] = [
        ("without RAM", "pc.ram", |names, fds| {
            let at = position(names, "pc.ram");
            names.remove(at);
            fds.remove(at);
        }),
        ("without the ownership word", "ownership", |names, fds| {
            let at = position(names, "ownership");
            names.remove(at);
            fds.remove(at);
        }),
        ("with one too many", "stowaway", |names, fds| {
            names.push(FdName::new("stowaway", 0));
            fds.push(memfd(4096));
        }),
        ("with RAM twice", "twice", |names, fds| {
            let at = position(names, "pc.ram");
            names.push(names[at].clone());
            fds.push(fds[at].try_clone().expect("a duplicate"));
        }),
        ("with /dev/null for RAM", "pc.ram", |names, fds| {
            fds[position(names, "pc.ram")] = File::open("/dev/null").expect("/dev/null").into();
        }),
        ("with RAM of another size", "pc.ram", |names, fds| {
            fds[position(names, "pc.ram")] = memfd(1 << 20);
        }),
        ("with names for other descriptors", "descriptors", |names, _| {
            names.pop();
        }),
    ];
    let host = Host::new()?;
    let mut vm = Vm::boot(&host, Spec { ram_file: false, ..Spec::new(Guest::patterns(Mode::Long), 2) })?;
    for (what, named, change) in changes {
        attacked(&vm, &host, &[], |_| descriptors(change))?
            .must_say(1, named)
            .and_then(|_| vm.becomes("running"))
            .and_then(|()| vm.goes_on())
            .with_context(|| what.to_owned())?;
    }
    as_if_nothing_had_happened(&mut vm)
}

fn a_damaged_frame_is_refused() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = boot(&host)?;
    for (side, kind, name) in STEPS {
        for at in [0, 4, 8, 20, 24, 40] {
            attacked(&vm, &host, &["--timeout", "1", "--downtime-limit", "300"], |_| {
                Box::new(move |crossing| {
                    let here = crossing.from == side
                        && crossing.frame.kind == kind
                        && crossing.moment == Moment::Before;
                    if here { Action::Damage(at) } else { Action::Pass }
                })
            })?
            .must_be(1)
            .and_then(|_| vm.becomes("running"))
            .and_then(|()| vm.goes_on())
            .with_context(|| format!("{name} with byte {at} damaged"))?;
        }
    }
    as_if_nothing_had_happened(&mut vm)
}

fn a_repeated_frame_is_refused() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = boot(&host)?;
    for kind in [Hello::KIND, Descriptors::KIND] {
        attacked(&vm, &host, &[], |_| changed(kind, |_| Action::Repeat))?.must_be(1)?;
        vm.goes_on()?;
    }
    as_if_nothing_had_happened(&mut vm)
}

fn a_target_without_a_feature_the_guest_was_shown_refuses_by_name() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = boot(&host)?;
    let socket = host.fresh("in");
    let from = format!("unix:{}", socket.display());
    let _target = host.load(["resume", "--from", &from, "--set", "cpu.mask=sse3"])?;
    while !socket.exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    vm.transfer_to(&socket)?.must_say(1, "sse3")?;
    as_if_nothing_had_happened(&mut vm)
}

fn a_file_without_room_or_in_a_directory_that_cannot_be_written_fails() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = boot(&host)?;
    let missing = host.path().join("missing/state");
    // Root may write where the mode forbids it; what nobody may write in is procfs.
    for path in [missing.as_path(), std::path::Path::new("/proc/state"), std::path::Path::new("/dev/full")] {
        let address = format!("file:{}", path.display());
        let outcome = vm.save("reboot", &["--to", &address])?;
        ensure!(matches!(outcome.code, 1 | 3), "{address}: {} {}", outcome.code, outcome.facts);
        outcome.clone().must_say(outcome.code, &path.display().to_string())?;
        vm.becomes("running")?;
        vm.goes_on().context(address)?;
    }
    no_space(&host, &mut vm)?;
    as_if_nothing_had_happened(&mut vm)
}

/// Saves to a file system without room.
fn no_space(host: &Host, vm: &mut Vm<'_>) -> anyhow::Result<()> {
    let small = host.path().join("small");
    std::fs::create_dir(&small).context("making a directory")?;
    let mounted =
        nix::mount::mount(Some("none"), &small, Some("tmpfs"), nix::mount::MsFlags::empty(), Some("size=4k"));
    mounted.map_err(|e| Skipped(format!("mounting a tmpfs of one page: {e}")))?;
    let address = format!("file:{}", small.join("state").display());
    let outcome = vm.save("reboot", &["--to", &address]);
    let left = std::fs::read_dir(&small).map(Iterator::count);
    nix::mount::umount(&small).context("unmounting the small tmpfs")?;
    let outcome = outcome?;
    ensure!(matches!(outcome.code, 1 | 3), "without room: {} {}", outcome.code, outcome.facts);
    outcome.clone().must_say(outcome.code, "4096 are free")?;
    ensure!(left.context("reading the small tmpfs")? == 0, "a half-written file was left behind");
    vm.becomes("running")?;
    vm.goes_on()
}

fn a_reboot_that_would_lose_ram_is_refused_before_the_guest_stops() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = Vm::boot(&host, Spec { ram_file: false, ..Spec::new(Guest::patterns(Mode::Long), 2) })?;
    let address = format!("file:{}", host.fresh("state").display());
    vm.save("reboot", &["--to", &address])?.must_say(3, "pc.ram")?;
    as_if_nothing_had_happened(&mut vm)
}

fn what_would_not_outlive_a_kexec_is_refused_before_the_guest_stops() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = boot(&host)?;
    let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).context("making a directory")?;
    if vmm_core::memory::is_in_memory(&File::open(disk.path())?) {
        return Err(Skipped("the target directory is in memory".into()).into());
    }
    let kept = disk.path().join("state");
    let [in_memory, on_disk] = [&host.fresh("state"), &kept].map(|file| format!("file:{}", file.display()));
    for verb in [&["check", "--mode", "reboot"][..], &["reboot"]] {
        let try_with = |more: &[&str]| {
            let arguments = [&verb[1..], &["--kexec"], more].concat();
            vm.save(verb[0], &arguments)
        };
        for way in ["--copy-ram", "luo:", "backing=dax", "backing=file"] {
            try_with(&["--to", &on_disk])?.must_say(3, way)?;
        }
        try_with(&["--copy-ram", "--to", &in_memory])?.must_say(3, "put it on a disk")?;
    }
    as_if_nothing_had_happened(&mut vm)?;
    vm.save("reboot", &["--kexec", "--copy-ram", "--to", &on_disk])?.must_be(0)?;
    vm.ended()?;
    vm.load_with_ram(&kept)?;
    vm.becomes("running")?;
    vm.goes_on()
}

fn what_no_live_update_preserves_is_refused_before_the_guest_stops() -> anyhow::Result<()> {
    let host = Host::new()?;
    // Its RAM is a file.
    let mut vm = boot(&host)?;
    for verb in [&["check", "--mode", "reboot"][..], &["reboot"]] {
        let outcome = vm.save(verb[0], &[&verb[1..], &["--to", "luo:"]].concat())?;
        outcome.clone().must_say(3, "backing=memfd")?;
        // Here the kernel has no orchestrator, or it has: in the lab it does.
        if !Path::new("/dev/liveupdate").exists() {
            outcome.must_say(3, "liveupdate=on")?;
        }
    }
    as_if_nothing_had_happened(&mut vm)?;
    let mut nobody = host.load(["resume", "--from", "luo:nobody"])?;
    let status = nobody.wait(Duration::from_mins(1))?;
    ensure!(status.code() == Some(1), "cpr-load ended with {status}");
    let said = nobody.log();
    ensure!(said.contains("luo:nobody") || said.contains("liveupdate=on"), "cpr-load said {said}");
    Ok(())
}

/// Tries to exec a command, and expects the guest back in the process that it was in.
fn exec_fails(command: &[&str], says: &str) -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = boot(&host)?;
    let mut arguments = vec!["--timeout", "2", "--"];
    arguments.extend(command);
    let outcome = vm.save("exec", &arguments)?;
    ensure!(
        matches!(outcome.code, 1 | 3),
        "cpr-save ended with {}: {} {}",
        outcome.code,
        outcome.facts,
        outcome.log
    );
    outcome.clone().must_say(outcome.code, says)?;
    vm.becomes("running")?;
    vm.goes_on()?;
    vm.exec().context("a right exec after the failure")?;
    as_if_nothing_had_happened(&mut vm)
}

fn an_exec_of_a_command_that_does_not_exist_fails() -> anyhow::Result<()> {
    exec_fails(&["/does/not/exist"], "/does/not/exist")
}

fn an_exec_of_a_command_that_exits_at_once_fails() -> anyhow::Result<()> {
    exec_fails(&["/bin/false"], "/bin/false")
}

/// A shell script that stands for another build of `cpr-load`.
fn an_exec_of_a_command_that_hangs_fails() -> anyhow::Result<()> {
    let scripts = Host::new()?;
    let hangs = scripts.script("exec sleep 1000")?;
    exec_fails(&[&hangs], &hangs)
}

fn an_exec_of_a_command_that_cannot_read_the_format_fails() -> anyhow::Result<()> {
    let scripts = Host::new()?;
    let old = scripts.script("echo 'unknown format' >&2\nexit 1")?;
    exec_fails(&[&old], &old)
}

fn an_exec_whose_new_binary_cannot_load_after_all_comes_back_to_the_old_one() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = boot(&host)?;
    let load = binary("cpr-load")?;
    // It answers the probe like any other, and lacks a feature when it comes to it.
    let turncoat = host.turncoat(&format!("exec {} \"$@\" --set cpu.mask=sse3", load.display()))?;
    vm.save("exec", &["--", &turncoat])?.must_say(1, "sse3")?;
    as_if_nothing_had_happened(&mut vm)
}

/// For a process that gave its guest away.
const ENDS_WITHIN: Duration = Duration::from_secs(30);

/// A process that the harness did not start; it does not outlive the test.
struct Stray(Pid);

impl Drop for Stray {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
    }
}

/// Execs a command that does not take the guest after all, and expects it in the process that it went to on its way:
/// it runs, its monitor answers, it can be handed over.
fn exec_leaves_the_guest_in_the_stopover(command: &str, host: &Host, vm: &mut Vm<'_>) -> anyhow::Result<()> {
    let pid = vm.save("exec", &["--timeout", "2", "--", command])?.stopover()?;
    let stopover = Stray(Pid::from_raw(pid));
    ensure!(pid != vm.process.pid(), "the guest is said to be in the process that was to execute");
    vm.becomes("running")?;
    vm.goes_on()?;
    let target = host.target()?;
    vm.transfer_to(&target.socket)?.must_be(0).context("a right handover after the failure")?;
    vm.process = target.process;
    vm.goes_on()?;
    let deadline = Instant::now() + ENDS_WITHIN;
    while kill(stopover.0, None).is_ok() {
        ensure!(Instant::now() < deadline, "the stopover gave its guest away and did not end");
        std::thread::sleep(Duration::from_millis(10));
    }
    as_if_nothing_had_happened(vm)
}

fn an_exec_whose_new_binary_ends_after_all_leaves_the_guest_running() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = boot(&host)?;
    let turncoat = host.turncoat("exit 1")?;
    exec_leaves_the_guest_in_the_stopover(&turncoat, &host, &mut vm)
}

fn an_exec_whose_new_binary_hangs_after_all_leaves_the_guest_running() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = boot(&host)?;
    let turncoat = host.turncoat("exec sleep 1000")?;
    exec_leaves_the_guest_in_the_stopover(&turncoat, &host, &mut vm)
}
