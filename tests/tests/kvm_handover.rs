//! Guests survive each mode: nothing that they hold is lost, and what they were doing goes on.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cpr_tests::guests::{Guest, Hold, Mode, Work, layout};
use cpr_tests::harness::host::Host;
use cpr_tests::harness::ram::Ram;
use cpr_tests::harness::runner::Tier;
use cpr_tests::harness::vm::{Spec, Vm};
use cpr_tests::harness::watch::{Watcher, host_tsc};
use serde_json::json;
use vmm_core::cpr::Mode as CprMode;

cpr_tests::tests!(
    Tier::Kvm,
    a_heartbeat_goes_on_over_each_mode_in_every_processor_mode_and_count,
    patterns_are_held_over_each_mode_in_every_processor_mode_and_count,
    thirty_handovers_in_mixed_order_leave_descriptors_and_memory_flat,
    the_time_stamp_counter_goes_on_in_step_with_the_hosts,
    a_deadline_timer_goes_on_over_each_mode,
    a_guest_that_sleeps_between_interrupts_is_woken_after_each_mode,
    a_guest_that_halts_with_interrupts_off_is_handed_over_in_each_mode,
    a_paused_guest_stays_paused_through_each_mode,
    the_downtime_reported_is_the_one_seen_from_outside,
    the_console_loses_and_repeats_no_byte_and_its_client_stays,
    the_power_button_reaches_a_guest_that_was_handed_over,
    cont_is_refused_in_a_source_that_gave_its_guest_away,
    an_exec_keeps_the_process_id_and_its_number_of_descriptors,
    sixty_four_vcpus_are_handed_over,
);

fn survives(guest: Guest, cpus: u64) -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = Vm::boot(&host, Spec::new(guest, cpus))?;
    for mode in CprMode::ALL {
        vm.handover(mode)
            .and_then(|_| vm.goes_on())
            .with_context(|| format!("{guest:?} with {cpus} vCPUs over {mode}"))?;
    }
    Ok(())
}

fn a_heartbeat_goes_on_over_each_mode_in_every_processor_mode_and_count() -> anyhow::Result<()> {
    for mode in Mode::ALL {
        for cpus in [1, 2, 4] {
            survives(Guest::new(Work::Heartbeat, mode), cpus)?;
        }
    }
    Ok(())
}

fn patterns_are_held_over_each_mode_in_every_processor_mode_and_count() -> anyhow::Result<()> {
    for mode in Mode::ALL {
        for cpus in [1, 2, 4] {
            survives(Guest::patterns(mode), cpus)?;
        }
    }
    Ok(())
}

fn thirty_handovers_in_mixed_order_leave_descriptors_and_memory_flat() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = Vm::boot(&host, Spec::new(Guest::patterns(Mode::Long), 2))?;
    // Each mode follows each other and itself.
    let [transfer, exec, reboot] = CprMode::ALL;
    let order = [transfer, transfer, exec, exec, reboot, reboot, transfer, reboot, exec];
    let mut seen = Vec::new();
    for mode in order.into_iter().cycle().take(30) {
        vm.handover(mode)
            .and_then(|_| vm.goes_on())
            .with_context(|| format!("handover {}", seen.len() + 1))?;
        seen.push((mode, vm.process.open_descriptors()?, vm.process.resident_anonymous()?));
    }
    // What a process of each mode has open and resident does not grow with what its guest has been through.
    for mode in CprMode::ALL {
        let of_mode: Vec<_> = seen.iter().filter(|(m, ..)| *m == mode).collect();
        let (first, last) = (of_mode[0], of_mode[of_mode.len() - 1]);
        ensure!(last.1 <= first.1, "descriptors after {mode}: {} at first, {} at last", first.1, last.1);
        let margin = 1 << 20;
        ensure!(
            last.2 <= first.2 + margin,
            "bytes resident after {mode}: {} at first, {} at last",
            first.2,
            last.2
        );
    }
    Ok(())
}

/// How far the guest's time-stamp counter is from the host's, as the last heartbeat tells; the smallest of many looks.
fn tsc_distance(ram: &Ram) -> i64 {
    let look = |_| {
        let guest = ram.u64(layout::area(0) + layout::TSC).load(Ordering::Relaxed);
        host_tsc().wrapping_sub(guest) as i64
    };
    let looks = (0..200).map(|n| {
        std::thread::sleep(Duration::from_micros(200));
        look(n)
    });
    looks.min().unwrap_or_default()
}

fn the_time_stamp_counter_goes_on_in_step_with_the_hosts() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = Vm::boot(&host, Spec::new(Guest::new(Work::Heartbeat, Mode::Long), 1))?;
    let frequency = tsc_frequency();
    for mode in CprMode::ALL {
        let before = tsc_distance(&vm.ram);
        vm.handover(mode)?;
        vm.goes_on()?;
        let after = tsc_distance(&vm.ram);
        let us = (after - before) as f64 / frequency * 1e6;
        ensure!(us.abs() < 200.0, "over {mode} the guest's TSC went {us:.0} us out of step with the host's");
    }
    Ok(())
}

/// Ticks of the host's time-stamp counter in a second.
fn tsc_frequency() -> f64 {
    let now = || (Instant::now(), host_tsc());
    let (begin, first) = now();
    std::thread::sleep(Duration::from_millis(50));
    let (end, last) = now();
    (last - first) as f64 / (end - begin).as_secs_f64()
}

fn a_deadline_timer_goes_on_over_each_mode() -> anyhow::Result<()> {
    for mode in Mode::ALL {
        survives(Guest { hold: Hold::DEADLINE, ..Guest::patterns(mode) }, 2)?;
    }
    Ok(())
}

fn a_guest_that_sleeps_between_interrupts_is_woken_after_each_mode() -> anyhow::Result<()> {
    for mode in Mode::ALL {
        survives(Guest::new(Work::Idle, mode), 2)?;
    }
    Ok(())
}

fn a_guest_that_halts_with_interrupts_off_is_handed_over_in_each_mode() -> anyhow::Result<()> {
    survives(Guest::new(Work::Halted, Mode::Protected), 2)
}

fn a_paused_guest_stays_paused_through_each_mode() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = Vm::boot(&host, Spec::new(Guest::patterns(Mode::Long), 2))?;
    vm.save("stop", &[])?.must_be(0)?;
    for mode in CprMode::ALL {
        vm.handover(mode)?;
        // The process that loads a file is `inmigrate` until it has.
        vm.becomes("paused").with_context(|| format!("over {mode}"))?;
        vm.stands_still().with_context(|| format!("over {mode}"))?;
    }
    vm.save("cont", &[])?.must_be(0)?;
    vm.goes_on()
}

fn the_downtime_reported_is_the_one_seen_from_outside() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = Vm::boot(&host, Spec::new(Guest::new(Work::Heartbeat, Mode::Long), 1))?;
    // An exec stands still twice: it reports the sum, and the longer of the two is seen.
    for (mode, stops) in [(CprMode::CprTransfer, 1), (CprMode::CprExec, 2)] {
        // What the machine makes the guest wait besides is seen from outside, too: the closest of some handovers counts.
        let mut closest = Duration::MAX;
        for _ in 0..8 {
            let target = if mode == CprMode::CprTransfer { Some(host.target()?) } else { None };
            let watcher = Watcher::start(vm.ram.clone());
            let outcome = match target {
                Some(target) => vm.transfer_into(target)?,
                None => vm.exec()?,
            };
            let seen = watcher.finish()?.longest();
            let reported = outcome.downtime().with_context(|| format!("no downtime in {}", outcome.facts))?;
            ensure!(
                seen * stops + Duration::from_millis(1) >= reported,
                "{mode}: {reported:?} reported, {seen:?} seen"
            );
            closest = closest.min(seen.saturating_sub(reported));
        }
        ensure!(closest < Duration::from_millis(3), "{mode}: seen {closest:?} longer than reported, at best");
    }
    Ok(())
}

/// What a console sends back of what was sent to it: bytes that are no hexadecimal digits.
fn is_echo(byte: u8) -> bool {
    byte.is_ascii_lowercase() && byte > b'f'
}

/// Reads what the console sends until it has sent back so many bytes in all, and so many lines more.
fn read_console(
    client: &mut UnixStream,
    text: &mut Vec<u8>,
    echoes: usize,
    lines: usize,
) -> anyhow::Result<()> {
    let mut buffer = [0; 4096];
    let deadline = Instant::now() + Duration::from_mins(1);
    let count = |text: &[u8], what: fn(u8) -> bool| text.iter().filter(|&&byte| what(byte)).count();
    let is_end: fn(u8) -> bool = |byte| byte == b'\n';
    let wanted = count(text, is_end) + lines;
    while count(text, is_echo) < echoes || count(text, is_end) < wanted {
        let read = client.read(&mut buffer).context("reading the console")?;
        ensure!(read > 0, "the console's client was disconnected");
        text.extend_from_slice(&buffer[..read]);
        ensure!(Instant::now() < deadline, "{} of {echoes} bytes came back", count(text, is_echo));
    }
    Ok(())
}

fn the_console_loses_and_repeats_no_byte_and_its_client_stays() -> anyhow::Result<()> {
    let host = Host::new()?;
    let socket = host.fresh("serial");
    let serial = Some(format!("unix:{}", socket.display()));
    let mut vm = Vm::boot(&host, Spec { serial, ..Spec::new(Guest::new(Work::Console, Mode::Long), 1) })?;
    let mut client = UnixStream::connect(&socket).context("connecting to the console")?;
    client.set_read_timeout(Some(Duration::from_mins(1)))?;
    let mut text = Vec::new();
    let mut sent = Vec::new();
    read_console(&mut client, &mut text, 0, 10)?;
    for mode in [CprMode::CprTransfer, CprMode::CprExec, CprMode::CprTransfer] {
        // Input that is on its way when the guest stops arrives in the target.
        let round = u8::try_from(sent.len() / 40)?;
        let input: Vec<u8> = (0..40).map(|n| b'g' + round * 5 + n % 5).collect();
        client.write_all(&input).context("writing to the console")?;
        sent.extend_from_slice(&input);
        vm.handover(mode)?;
        read_console(&mut client, &mut text, sent.len(), 200).with_context(|| format!("after {mode}"))?;
    }
    // Lines are hexadecimal digits; what was sent in is not, and comes back between them.
    let echoed: Vec<u8> = text.iter().copied().filter(|&byte| is_echo(byte)).collect();
    let printable = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(echoed == sent, "sent {}, and {} came back", printable(&sent), printable(&echoed));
    text.retain(|&byte| !is_echo(byte));
    let text = String::from_utf8(text).context("the console's output is not text")?;
    let whole = text.rfind('\n').unwrap_or_default();
    let mut lines = text[..whole].lines().skip(1).map(|line| u32::from_str_radix(line, 16));
    let mut number = lines.next().context("no line")?.context("the first line is no number")?;
    for line in lines {
        number += 1;
        ensure!(line == Ok(number), "the console wrote {line:x?}, expected {number:08x}");
    }
    Ok(())
}

fn the_power_button_reaches_a_guest_that_was_handed_over() -> anyhow::Result<()> {
    for mode in CprMode::ALL {
        let host = Host::new()?;
        let mut vm = Vm::boot(&host, Spec::new(Guest::new(Work::PowerOff, Mode::Protected), 1))?;
        vm.handover(mode)?;
        vm.goes_on()?;
        vm.ask("system_powerdown")?;
        let status = vm.process.wait(Duration::from_mins(1)).with_context(|| format!("after {mode}"))?;
        ensure!(status.success(), "after {mode}, powered off, cpr-load ended with {status}");
    }
    Ok(())
}

fn cont_is_refused_in_a_source_that_gave_its_guest_away() -> anyhow::Result<()> {
    let host = Host::new()?;
    let vm = Vm::boot(&host, Spec::new(Guest::new(Work::Heartbeat, Mode::Long), 1))?;
    let target = host.target()?;
    let mut source_monitor = vm.monitor()?;
    vm.save("transfer", &["--to", &format!("unix:{}", target.socket.display()), "--keep"])?.must_be(0)?;
    let status = source_monitor.execute("query-status", &json!({}))?;
    ensure!(status["status"] == "postmigrate", "the source is {status}");
    let refused = source_monitor.execute("cont", &json!({}));
    ensure!(refused.is_err(), "the source went on with a guest that it gave away: {refused:?}");
    vm.goes_on()
}

fn an_exec_keeps_the_process_id_and_its_number_of_descriptors() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = Vm::boot(&host, Spec::new(Guest::new(Work::Heartbeat, Mode::Long), 1))?;
    let mut descriptors = Vec::new();
    for _ in 0..4 {
        vm.exec()?;
        vm.process.must_run()?;
        vm.goes_on()?;
        descriptors.push(vm.process.open_descriptors()?);
    }
    ensure!(descriptors.iter().all(|count| *count == descriptors[0]), "descriptors grew: {descriptors:?}");
    Ok(())
}

fn sixty_four_vcpus_are_handed_over() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = Vm::boot(&host, Spec::new(Guest::new(Work::Idle, Mode::Protected), 64))?;
    vm.transfer()?;
    vm.goes_on()
}
