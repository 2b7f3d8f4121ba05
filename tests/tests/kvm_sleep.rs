//! Guests that sleep (ACPI S3): they are woken where they want to be, with their RAM.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use cpr_tests::guests::{Guest, Mode, Work, layout};
use cpr_tests::harness::host::Host;
use cpr_tests::harness::ram::Ram;
use cpr_tests::harness::runner::Tier;
use cpr_tests::harness::vm::{Spec, Vm};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use vmm_core::cpr::Mode as Handover;
use vmm_core::monitor::client::Client;

cpr_tests::tests!(
    Tier::Kvm,
    a_guest_sleeps_and_is_woken_with_its_ram_by_its_vector_and_as_a_firmware,
    a_guest_is_woken_by_its_power_button_and_sees_that,
    only_a_guest_that_sleeps_is_woken_and_stop_and_cont_leave_it_asleep,
    a_guest_without_a_waking_vector_is_started_from_its_beginning,
    a_guest_that_sleeps_is_handed_over_asleep_in_every_mode_and_woken_there,
    a_guest_is_woken_after_each_mode_and_sleeps_again,
    a_handover_that_fails_leaves_a_guest_asleep,
    a_guest_that_falls_asleep_just_as_it_is_handed_over_sleeps_on,
    a_guest_that_is_suspended_to_be_saved_is_woken_where_it_is_loaded,
    a_guest_that_slept_when_it_was_to_be_suspended_sleeps_on_where_it_is_loaded,
    a_guest_that_does_not_suspend_in_time_goes_on_and_the_message_says_why_and_what_would_do,
    a_guest_without_an_agents_port_or_paused_is_refused_and_not_touched,
    a_guest_that_is_suspended_and_then_not_saved_is_woken,
    a_guest_that_falls_asleep_too_late_is_woken_and_may_be_suspended_again,
    an_alarm_wakes_a_guest_where_it_sleeps_by_then,
    an_alarm_that_came_while_a_guest_was_saved_wakes_it_where_it_is_loaded,
    a_guest_that_was_woken_before_its_alarm_sleeps_until_it,
    a_byte_wakes_a_guest_that_wants_it_and_is_read_where_it_sleeps_by_then,
    a_byte_leaves_a_guest_asleep_that_does_not_want_it_and_is_kept_for_it,
);

/// Where a guest's RAM has what nobody but the test wrote.
const MARK: u64 = 0x100_0000;
/// For an event that is due.
const SOON: Duration = Duration::from_secs(10);
/// A directory of a host's that may be removed.
const GONE: &str = "gone";
/// `WAK_STS`, `PWRBTN_STS` and `RTC_STS` of PM1.
const WOKEN: u32 = 1 << 15;
const POWER_BUTTON: u32 = 1 << 8;
const ALARM: u32 = 1 << 10;
/// Ways to sleep.
const UNTIL_ALARM: u32 = 3;
const UNTIL_BYTE: u32 = 4;
/// Where a guest is when what wakes it comes.
const PLACES: [Option<Handover>; 4] =
    [None, Some(Handover::CprTransfer), Some(Handover::CprExec), Some(Handover::CprReboot)];

fn boot(host: &Host, mode: Mode, kernel: bool) -> anyhow::Result<Vm<'_>> {
    let vm = Vm::boot(host, Spec { kernel, ..Spec::new(Guest::new(Work::Sleep, mode), 2) })?;
    vm.ram.u64(MARK).store(u64::MAX / 3, SeqCst);
    Ok(vm)
}

/// Has it sleep, and waits until it does.
fn sleep(vm: &Vm, how: u32) -> anyhow::Result<Client> {
    let monitor = vm.monitor()?;
    vm.ram.u32(layout::area(0) + layout::SLEEP).store(how, SeqCst);
    vm.becomes("suspended")?;
    vm.stands_still()?;
    Ok(monitor)
}

/// Waits until it was woken for the `times`th time, and goes on on all vCPUs with its RAM; says what woke it.
fn woken(vm: &Vm, times: u64) -> anyhow::Result<u32> {
    vm.becomes("running")?;
    let deadline = Instant::now() + SOON;
    while vm.ram.ticks(0) < times && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
    vm.goes_on()?;
    ensure!(vm.ram.ticks(0) == times, "woken {} times, and not {times}", vm.ram.ticks(0));
    ensure!(vm.ram.u64(MARK).load(SeqCst) == u64::MAX / 3, "its RAM changed");
    Ok(vm.ram.u32(layout::area(0) + layout::FOUND).load(SeqCst))
}

fn a_guest_sleeps_and_is_woken_with_its_ram_by_its_vector_and_as_a_firmware() -> anyhow::Result<()> {
    for kernel in [true, false] {
        for mode in Mode::ALL {
            let host = Host::new()?;
            let vm = boot(&host, mode, kernel)?;
            for times in 1..=3 {
                let mut monitor = sleep(&vm, 1)?;
                monitor.wait_event("SUSPEND", SOON)?;
                vm.ask("system_wakeup")?;
                monitor.wait_event("WAKEUP", SOON)?;
                let found = woken(&vm, times).with_context(|| format!("{mode:?}, kernel {kernel}"))?;
                ensure!(found == WOKEN, "PM1_STS was {found:#x}");
            }
        }
    }
    Ok(())
}

fn a_guest_is_woken_by_its_power_button_and_sees_that() -> anyhow::Result<()> {
    let host = Host::new()?;
    let vm = boot(&host, Mode::Long, true)?;
    let mut monitor = sleep(&vm, 1)?;
    vm.ask("system_powerdown")?;
    monitor.wait_event("WAKEUP", SOON)?;
    ensure!(woken(&vm, 1)? == WOKEN | POWER_BUTTON, "it does not see that its button was pressed");
    // What asks a process to end presses the button, too.
    sleep(&vm, 1)?;
    vm.process.signal(Signal::SIGTERM)?;
    ensure!(woken(&vm, 2)? == WOKEN | POWER_BUTTON, "it does not see that its button was pressed");
    Ok(())
}

fn only_a_guest_that_sleeps_is_woken_and_stop_and_cont_leave_it_asleep() -> anyhow::Result<()> {
    let host = Host::new()?;
    let vm = boot(&host, Mode::Protected, true)?;
    let refused = |vm: &Vm| vm.ask("system_wakeup").err().map(|error| format!("{error:#}"));
    let not_suspended =
        |error: Option<String>| error.is_some_and(|error| error.contains("not in suspended state"));
    ensure!(not_suspended(refused(&vm)), "a guest that runs was woken");
    vm.ask("stop")?;
    ensure!(not_suspended(refused(&vm)), "a guest that is paused was woken");
    vm.ask("cont")?;
    sleep(&vm, 1)?;
    for command in ["stop", "cont"] {
        vm.ask(command)?;
        ensure!(vm.run_state()? == "suspended", "{command} woke it");
        vm.stands_still()?;
    }
    vm.ask("system_wakeup")?;
    woken(&vm, 1).map(drop)
}

fn a_guest_without_a_waking_vector_is_started_from_its_beginning() -> anyhow::Result<()> {
    let host = Host::new()?;
    let vm = boot(&host, Mode::Long, true)?;
    let mut monitor = sleep(&vm, 2)?;
    let error = vm.ask("system_wakeup").err().context("it was woken")?;
    ensure!(format!("{error:#}").contains("no waking vector"), "{error:#}");
    monitor.wait_event("RESET", SOON)?;
    vm.becomes("running")?;
    vm.goes_on()
}

fn a_guest_that_sleeps_is_handed_over_asleep_in_every_mode_and_woken_there() -> anyhow::Result<()> {
    for kernel in [true, false] {
        let host = Host::new()?;
        let mut vm = boot(&host, Mode::Long, kernel)?;
        sleep(&vm, 1)?;
        for mode in [Handover::CprTransfer, Handover::CprExec, Handover::CprReboot] {
            vm.handover(mode).with_context(|| format!("{mode}"))?;
            vm.becomes("suspended").with_context(|| format!("after {mode}"))?;
            vm.stands_still()?;
        }
        vm.ask("system_wakeup")?;
        woken(&vm, 1)?;
    }
    Ok(())
}

fn a_guest_is_woken_after_each_mode_and_sleeps_again() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = boot(&host, Mode::Long, true)?;
    for (times, mode) in (1..).zip([Handover::CprTransfer, Handover::CprExec, Handover::CprReboot]) {
        sleep(&vm, 1)?;
        vm.handover(mode).with_context(|| format!("{mode}"))?;
        vm.becomes("suspended").with_context(|| format!("after {mode}"))?;
        let mut monitor = vm.monitor()?;
        vm.ask("system_wakeup")?;
        monitor.wait_event("WAKEUP", SOON)?;
        woken(&vm, times)?;
    }
    // Awake, it goes on with all modes as any other.
    for mode in [Handover::CprTransfer, Handover::CprExec, Handover::CprReboot] {
        vm.handover(mode).with_context(|| format!("{mode}, awake again"))?;
        vm.becomes("running")?;
        vm.goes_on()?;
    }
    Ok(())
}

fn a_handover_that_fails_leaves_a_guest_asleep() -> anyhow::Result<()> {
    let host = Host::new()?;
    let vm = boot(&host, Mode::Long, true)?;
    sleep(&vm, 1)?;
    vm.save("exec", &["--", "/bin/false"])?.must_be(1)?;
    ensure!(vm.run_state()? == "suspended", "the guest is {}", vm.run_state()?);
    vm.stands_still()?;
    vm.ask("system_wakeup")?;
    woken(&vm, 1).map(drop)
}

fn a_guest_that_falls_asleep_just_as_it_is_handed_over_sleeps_on() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = boot(&host, Mode::Long, true)?;
    for times in 1..=10 {
        vm.ram.u32(layout::area(0) + layout::SLEEP).store(1, SeqCst);
        vm.handover([Handover::CprTransfer, Handover::CprReboot][times as usize % 2])?;
        vm.becomes("suspended")?;
        vm.ask("system_wakeup")?;
        woken(&vm, times)?;
    }
    Ok(())
}

/// What a stand-in for a guest's agent does when it is to suspend the guest.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Agent {
    Suspends,
    /// And removes the directory that it was to be saved to.
    SuspendsAndBreaks,
    Refuses,
    DoesNothing,
}

/// A guest with an agent's port, at which the test answers in its place: a bare-metal guest has no agent.
fn boot_with(host: &Host, agent: Agent) -> anyhow::Result<(Vm<'_>, PathBuf)> {
    let port = host.fresh("agent");
    let devices = vec![format!("virtio-serial-pci,port.org.qemu.guest_agent.0=unix:{}", port.display())];
    let spec = Spec { kernel: true, devices, ..Spec::new(Guest::new(Work::Sleep, Mode::Long), 2) };
    let vm = Vm::boot(host, spec)?;
    vm.ram.u64(MARK).store(u64::MAX / 3, SeqCst);
    stand_in(host, &vm, &port, agent)?;
    Ok((vm, port))
}

/// Takes the place of the port's socket.
fn stand_in(host: &Host, vm: &Vm, port: &Path, agent: Agent) -> anyhow::Result<()> {
    std::fs::remove_file(port)?;
    let (listener, ram, gone) = (UnixListener::bind(port)?, Arc::clone(&vm.ram), host.path().join(GONE));
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            // Whoever asked may be gone before it is answered.
            let _ = answer(stream, agent, &ram, &gone);
        }
    });
    Ok(())
}

/// Saves it suspended, and loads it, which makes its socket anew.
fn through_a_file(host: &Host, vm: &mut Vm, port: &Path, how: &[&str]) -> anyhow::Result<()> {
    let file = format!("file:{}", host.fresh("state").display());
    vm.save("reboot", &["--suspend", "--to", &file])?.must_be(0)?;
    vm.ended()?;
    std::fs::remove_file(port)?;
    vm.process = host.load([&["resume", "--from", &file], how].concat())?;
    Ok(())
}

fn answer(mut stream: UnixStream, agent: Agent, ram: &Ram, gone: &Path) -> anyhow::Result<()> {
    for line in BufReader::new(stream.try_clone()?).split(b'\n') {
        let line = line?;
        let start = line.iter().position(|byte| *byte != 0xff).unwrap_or(0);
        let asked: Value = serde_json::from_slice(&line[start..])?;
        match (asked["execute"].as_str(), agent) {
            (Some("guest-sync-delimited"), _) => {
                stream.write_all(&[0xff])?;
                writeln!(stream, "{}", json!({"return": asked["arguments"]["id"]}))?;
            }
            (Some("guest-suspend-ram"), Agent::Suspends | Agent::SuspendsAndBreaks) => {
                if agent == Agent::SuspendsAndBreaks {
                    std::fs::remove_dir(gone)?;
                }
                ram.u32(layout::area(0) + layout::SLEEP).store(1, SeqCst);
            }
            (Some("guest-suspend-ram"), Agent::Refuses) => {
                writeln!(
                    stream,
                    "{}",
                    json!({"error": {"class": "GenericError", "desc": "it may not sleep"}})
                )?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn a_guest_that_is_suspended_to_be_saved_is_woken_where_it_is_loaded() -> anyhow::Result<()> {
    let host = Host::new()?;
    let (mut vm, port) = boot_with(&host, Agent::Suspends)?;
    vm.save("check", &["--mode", "reboot", "--suspend"])?.must_be(0)?;
    through_a_file(&host, &mut vm, &port, &[])?;
    woken(&vm, 1)?;
    // Saved once more, it is left asleep where that is asked for.
    stand_in(&host, &vm, &port, Agent::Suspends)?;
    through_a_file(&host, &mut vm, &port, &["--paused"])?;
    vm.becomes("suspended")?;
    vm.stands_still()?;
    vm.ask("system_wakeup")?;
    woken(&vm, 2).map(drop)
}

fn a_guest_that_slept_when_it_was_to_be_suspended_sleeps_on_where_it_is_loaded() -> anyhow::Result<()> {
    let host = Host::new()?;
    let (mut vm, port) = boot_with(&host, Agent::DoesNothing)?;
    sleep(&vm, 1)?;
    through_a_file(&host, &mut vm, &port, &[])?;
    vm.becomes("suspended")?;
    vm.stands_still()
}

fn a_guest_that_does_not_suspend_in_time_goes_on_and_the_message_says_why_and_what_would_do()
-> anyhow::Result<()> {
    let host = Host::new()?;
    for (agent, words) in [
        (Agent::DoesNothing, ["did not suspend within 1 s", "--suspend=SECONDS"]),
        (Agent::Refuses, ["will not suspend it", "it may not sleep"]),
    ] {
        let (vm, _) = boot_with(&host, agent)?;
        let file = host.fresh("state");
        let outcome = vm.save("reboot", &["--suspend=1", "--to", &format!("file:{}", file.display())])?;
        let outcome = outcome.must_say(1, words[0])?;
        outcome.must_say(1, words[1])?;
        ensure!(vm.run_state()? == "running" && !file.exists(), "the guest is {}", vm.run_state()?);
        vm.goes_on()?;
    }
    Ok(())
}

fn a_guest_that_falls_asleep_too_late_is_woken_and_may_be_suspended_again() -> anyhow::Result<()> {
    let host = Host::new()?;
    let (mut vm, port) = boot_with(&host, Agent::DoesNothing)?;
    let file = host.fresh("state");
    vm.save("reboot", &["--suspend=1", "--to", &format!("file:{}", file.display())])?
        .must_say(1, "is woken")?;
    vm.goes_on()?;
    vm.ram.u32(layout::area(0) + layout::SLEEP).store(1, SeqCst);
    woken(&vm, 1)?;
    // Once.
    sleep(&vm, 1)?;
    vm.stands_still()?;
    vm.ask("system_wakeup")?;
    woken(&vm, 2)?;
    // One that was given up stays in nobody's way.
    vm.save("reboot", &["--suspend=1", "--to", &format!("file:{}", file.display())])?.must_be(1)?;
    stand_in(&host, &vm, &port, Agent::Suspends)?;
    through_a_file(&host, &mut vm, &port, &[])?;
    woken(&vm, 3).map(drop)
}

fn a_guest_without_an_agents_port_or_paused_is_refused_and_not_touched() -> anyhow::Result<()> {
    let host = Host::new()?;
    let file = format!("file:{}", host.fresh("state").display());
    let vm = boot(&host, Mode::Long, true)?;
    let words = "no port org.qemu.guest_agent.0";
    vm.save("reboot", &["--suspend", "--to", &file])?
        .must_say(3, words)?
        .must_say(3, "--device virtio-serial-pci")?;
    vm.goes_on()?;
    vm.ask("stop")?;
    vm.save("reboot", &["--suspend", "--to", &file])?.must_say(3, "is paused, and cannot suspend")?;
    Ok(())
}

fn a_guest_that_is_suspended_and_then_not_saved_is_woken() -> anyhow::Result<()> {
    let host = Host::new()?;
    let gone = host.path().join(GONE);
    std::fs::create_dir(&gone)?;
    let (vm, _) = boot_with(&host, Agent::SuspendsAndBreaks)?;
    let to = format!("file:{}", gone.join("state").display());
    vm.save("reboot", &["--suspend", "--to", &to])?.must_say(1, "No such file or directory")?;
    woken(&vm, 1).map(drop)
}

/// Sets the guest's alarm to a time that is so many seconds from now; gives that, as time since 1970.
fn set_alarm(vm: &Vm, seconds: u64) -> anyhow::Result<Duration> {
    let at = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() + seconds;
    let bcd = |value: u64| (value / 10 * 16 + value % 10) as u32;
    let alarm = bcd(at % 60) | bcd(at / 60 % 60) << 8 | bcd(at / 3600 % 24) << 16;
    vm.ram.u32(layout::area(0) + layout::ALARM).store(alarm, SeqCst);
    Ok(Duration::from_secs(at))
}

/// Waits until its alarm has woken it for the `times`th time, and not before it was due.
fn woken_by_alarm(vm: &Vm, times: u64, due: Duration) -> anyhow::Result<()> {
    let found = woken(vm, times)?;
    ensure!(found == WOKEN | ALARM, "PM1_STS was {found:#x}");
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    ensure!(now >= due, "it was woken {:?} before its alarm", due.saturating_sub(now));
    Ok(())
}

fn an_alarm_wakes_a_guest_where_it_sleeps_by_then() -> anyhow::Result<()> {
    for (times, place) in (1..).zip(PLACES) {
        let host = Host::new()?;
        let mut vm = boot(&host, Mode::Long, times % 2 == 0)?;
        let due = set_alarm(&vm, 5)?;
        let mut monitor = sleep(&vm, UNTIL_ALARM)?;
        match place {
            Some(mode) => drop(vm.handover(mode).with_context(|| format!("{mode}"))?),
            None => drop(monitor.wait_event("WAKEUP", SOON)?),
        }
        woken_by_alarm(&vm, 1, due).with_context(|| format!("{place:?}"))?;
        // It was told of once.
        sleep(&vm, 1)?;
        vm.stands_still()?;
    }
    Ok(())
}

fn an_alarm_that_came_while_a_guest_was_saved_wakes_it_where_it_is_loaded() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = boot(&host, Mode::Long, true)?;
    let due = set_alarm(&vm, 3)?;
    sleep(&vm, UNTIL_ALARM)?;
    let file = format!("file:{}", host.fresh("state").display());
    vm.save("reboot", &["--to", &file])?.must_be(0)?;
    vm.ended()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    thread::sleep(due.saturating_sub(now) + Duration::from_secs(1));
    vm.process = host.load(["resume", "--from", &file])?;
    woken_by_alarm(&vm, 1, due)
}

fn a_guest_that_was_woken_before_its_alarm_sleeps_until_it() -> anyhow::Result<()> {
    let host = Host::new()?;
    let vm = boot(&host, Mode::Long, true)?;
    let due = set_alarm(&vm, 60)?;
    sleep(&vm, UNTIL_ALARM)?;
    vm.ask("system_wakeup")?;
    let found = woken(&vm, 1)?;
    ensure!(found == WOKEN, "PM1_STS was {found:#x}");
    let sooner = set_alarm(&vm, 4)?;
    sleep(&vm, UNTIL_ALARM)?;
    woken_by_alarm(&vm, 2, sooner)?;
    ensure!(SystemTime::now().duration_since(UNIX_EPOCH)? < due, "it slept until its first alarm");
    Ok(())
}

/// A guest with a serial port, and who is at it.
fn boot_with_port<'h>(host: &'h Host, socket: &Path) -> anyhow::Result<(Vm<'h>, UnixStream)> {
    let serial = Some(format!("unix:{}", socket.display()));
    let vm =
        Vm::boot(host, Spec { kernel: true, serial, ..Spec::new(Guest::new(Work::Sleep, Mode::Long), 2) })?;
    vm.ram.u64(MARK).store(u64::MAX / 3, SeqCst);
    let client = UnixStream::connect(socket).context("connecting to its serial port")?;
    Ok((vm, client))
}

/// What the guest found in `GPE0_STS` when it was woken, and the byte that it then read.
fn found_at_port(vm: &Vm) -> [u8; 2] {
    let [event, byte, ..] = vm.ram.u32(layout::area(0) + layout::FOUND + 4).load(SeqCst).to_le_bytes();
    [event, byte]
}

fn a_byte_wakes_a_guest_that_wants_it_and_is_read_where_it_sleeps_by_then() -> anyhow::Result<()> {
    for place in PLACES {
        let host = Host::new()?;
        let socket = host.fresh("serial");
        let (mut vm, mut client) = boot_with_port(&host, &socket)?;
        sleep(&vm, UNTIL_BYTE)?;
        if let Some(mode) = place {
            vm.handover(mode).with_context(|| format!("{mode}"))?;
            vm.becomes("suspended")?;
            vm.stands_still()?;
        }
        if place == Some(Handover::CprReboot) {
            client = UnixStream::connect(&socket).context("connecting to its serial port again")?;
        }
        client.write_all(b"x")?;
        let status = woken(&vm, 1).with_context(|| format!("{place:?}"))?;
        let found = found_at_port(&vm);
        ensure!(status == WOKEN && found == [1, b'x'], "{place:?}: PM1_STS {status:#x}, {found:x?}");
    }
    Ok(())
}

fn a_byte_leaves_a_guest_asleep_that_does_not_want_it_and_is_kept_for_it() -> anyhow::Result<()> {
    let host = Host::new()?;
    let (mut vm, mut client) = boot_with_port(&host, &host.fresh("serial"))?;
    sleep(&vm, 1)?;
    client.write_all(b"y")?;
    thread::sleep(Duration::from_millis(500));
    ensure!(vm.run_state()? == "suspended", "the guest is {}", vm.run_state()?);
    vm.handover(Handover::CprTransfer)?;
    vm.becomes("suspended")?;
    vm.stands_still()?;
    vm.ask("system_wakeup")?;
    let status = woken(&vm, 1)?;
    let found = found_at_port(&vm);
    ensure!(status == WOKEN && found == [1, b'y'], "PM1_STS {status:#x}, {found:x?}");
    Ok(())
}
