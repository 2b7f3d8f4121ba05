//! The test guests themselves: each does what the other tests take for granted, in the smallest machine there is.

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, ensure};
use cpr_tests::guests::{Guest, Hold, Mode, Work, layout};
use cpr_tests::harness::bare::BareMachine;
use cpr_tests::harness::qemu::{self, Qemu};
use cpr_tests::harness::ram::Ram;
use cpr_tests::harness::runner::{Skipped, Tier};

cpr_tests::tests!(
    Tier::Kvm,
    a_heartbeat_is_seen_from_outside_in_every_mode_on_every_vcpu,
    patterns_are_held_and_the_timer_ticks_in_every_mode_on_every_vcpu,
    a_deadline_timer_goes_on_ticking,
    a_changed_pattern_is_found_by_the_guest_and_named,
    a_second_writer_of_the_count_is_found_by_the_guest,
    a_clock_that_goes_back_is_found_by_the_guest,
    a_halted_guest_counts_nothing,
    the_console_writes_numbered_lines,
    the_same_bytes_hold_all_patterns_under_qemu,
);

const RAM: u64 = 16 << 20;

fn start(guest: Guest, cpus: u8) -> anyhow::Result<BareMachine> {
    let mut machine = BareMachine::start(&guest.image(), cpus, RAM)?;
    machine.ram.wait_for_heartbeat(cpus.into()).map_err(|error| match machine.failure() {
        Some(failure) => error.context(format!("{guest:?}, {cpus} vCPUs: {failure}")),
        None => error.context(format!("{guest:?}, {cpus} vCPUs")),
    })?;
    Ok(machine)
}

fn a_heartbeat_is_seen_from_outside_in_every_mode_on_every_vcpu() -> anyhow::Result<()> {
    for mode in Mode::ALL {
        for cpus in [1, 2, 4] {
            start(Guest::new(Work::Heartbeat, mode), cpus)?;
        }
    }
    Ok(())
}

fn patterns_are_held_and_the_timer_ticks_in_every_mode_on_every_vcpu() -> anyhow::Result<()> {
    for mode in Mode::ALL {
        for cpus in [1, 4] {
            let machine = start(Guest::patterns(mode), cpus)?;
            let vcpus = cpus.into();
            machine.ram.wait_for("ticks", vcpus, 10, Ram::ticks)?;
            machine.ram.wait_for("sweeps", vcpus, 10, Ram::sweeps)?;
        }
    }
    Ok(())
}

fn a_deadline_timer_goes_on_ticking() -> anyhow::Result<()> {
    for mode in Mode::ALL {
        let machine = start(Guest { hold: Hold::DEADLINE, ..Guest::patterns(mode) }, 2)?;
        machine.ram.wait_for("ticks", 2, 10, Ram::ticks)?;
    }
    Ok(())
}

/// What the guest says when the expected pattern at an offset of its area is another.
fn found_after_a_change_at(offset: u64, hold: Hold, mode: Mode) -> anyhow::Result<String> {
    let machine = start(Guest { hold, ..Guest::patterns(mode) }, 1)?;
    let word = machine.ram.u32(layout::area(0) + offset);
    word.fetch_xor(1, Ordering::Relaxed);
    soon(|| machine.ram.error(0)).with_context(|| {
        format!("{mode:?}: the guest found nothing after a change at {offset:#x} of its area")
    })
}

/// What a check gives, if it gives something within 5 s.
fn soon<T>(mut check: impl FnMut() -> Option<T>) -> Option<T> {
    for _ in 0..5000 {
        if let Some(found) = check() {
            return Some(found);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

fn a_changed_pattern_is_found_by_the_guest_and_named() -> anyhow::Result<()> {
    let ram = layout::RAMS + 0x9000 - layout::area(0);
    for mode in Mode::ALL {
        for (offset, hold, expected) in [
            (ram, Hold(0), "RAM changed"),
            (layout::DEBUG_REGISTERS + 4, Hold::DEBUG, "a debug register changed: which 0x1,"),
            (layout::FPU_WANTED + 32, Hold::FPU, "the floating-point state changed: which 0x20,"),
            (layout::FPU_WANTED + 160, Hold::FPU, "the floating-point state changed: which 0xa0,"),
        ] {
            let error = found_after_a_change_at(offset, hold, mode)?;
            ensure!(error.contains(expected), "{mode:?}: '{error}' does not say '{expected}'");
        }
    }
    Ok(())
}

fn a_second_writer_of_the_count_is_found_by_the_guest() -> anyhow::Result<()> {
    let machine = start(Guest::new(Work::Heartbeat, Mode::Long), 1)?;
    machine.ram.u64(layout::area(0)).fetch_add(1000, Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(200));
    let error = machine.ram.error(0).context("the guest did not find the second writer")?;
    ensure!(error.contains("its count is not what it wrote"), "{error}");
    Ok(())
}

fn a_clock_that_goes_back_is_found_by_the_guest() -> anyhow::Result<()> {
    let machine = start(Guest::patterns(Mode::Long), 1)?;
    machine.ram.u64(layout::area(0) + layout::TSC).store(u64::MAX / 2, Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(500));
    let error = machine.ram.error(0).context("the guest did not find the clock that went back")?;
    ensure!(error.contains("the time-stamp counter went back"), "{error}");
    Ok(())
}

fn a_halted_guest_counts_nothing() -> anyhow::Result<()> {
    let machine = BareMachine::start(&Guest::new(Work::Halted, Mode::Protected).image(), 1, RAM)?;
    std::thread::sleep(Duration::from_millis(100));
    ensure!(machine.ram.online() == 1, "the guest did not come up");
    machine.ram.stands_still(1, Duration::from_millis(50))
}

/// What the guest has written when it is at least so many bytes.
fn first_bytes(machine: &BareMachine, least: usize) -> anyhow::Result<Vec<u8>> {
    let written = soon(|| Some(machine.serial_output()).filter(|text| text.len() >= least));
    written.with_context(|| {
        format!("the guest wrote {} bytes in 5 s, and not {least}", machine.serial_output().len())
    })
}

fn the_console_writes_numbered_lines() -> anyhow::Result<()> {
    for mode in Mode::ALL {
        let machine = start(Guest::new(Work::Console, mode), 1)?;
        let text = first_bytes(&machine, 1000)?;
        let text = String::from_utf8(text).context("the console's output is not text")?;
        let lines: Vec<_> = text.lines().collect();
        for (number, line) in lines[..lines.len() - 1].iter().enumerate() {
            ensure!(*line == format!("{number:08x}"), "{mode:?}: line {number} is '{line}'");
        }
    }
    Ok(())
}

fn the_same_bytes_hold_all_patterns_under_qemu() -> anyhow::Result<()> {
    qemu::version().map_err(|error| Skipped(format!("{error:#}")))?;
    for mode in Mode::ALL {
        let directory = tempfile::tempdir().context("making a directory")?;
        let rom = directory.path().join("rom");
        std::fs::write(&rom, Guest::new(Work::Patterns, mode).image()).context("writing the ROM")?;
        // Its own emulation knows XSAVE where an interpreting KVM does not.
        let config = qemu::Config { rom, accelerator: "tcg", cpus: 2, memory_mib: 32 };
        let qemu = Qemu::boot(config, directory.path())?;
        let ram = qemu.ram()?;
        ram.wait_for_heartbeat(2).with_context(|| format!("{mode:?}"))?;
        ram.wait_for("sweeps", 2, 100, Ram::sweeps)?;
        ram.wait_for("ticks", 2, 10, Ram::ticks)?;
        let held = ram.u32(layout::STATUS + layout::HELD).load(Ordering::Relaxed);
        ensure!(held == Hold::ALL.0, "{mode:?}: QEMU's guest holds {held:#x} of {:#x}", Hold::ALL.0);
    }
    Ok(())
}
