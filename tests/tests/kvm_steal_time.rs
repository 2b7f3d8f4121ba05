//! For how long a guest stood, its kernel is told as stolen time: all of what can be told, and never more than has passed.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cpr_tests::guests::{Guest, Hold, Mode, Work, layout};
use cpr_tests::harness::host::{Host, binary};
use cpr_tests::harness::runner::Tier;
use cpr_tests::harness::vm::{Spec, Vm};
use vmm_core::cpr::Mode as CprMode;

cpr_tests::tests!(
    Tier::Kvm,
    a_pause_is_told,
    each_mode_tells_it,
    the_time_between_a_save_and_its_load_is_told_in_place_and_copied,
    a_paused_guest_that_is_handed_over_is_told_when_it_goes_on,
    a_guest_that_comes_back_is_told,
    a_guest_that_does_not_ask_is_not_told,
);

const CPUS: u64 = 2;
const PAUSE: Duration = Duration::from_millis(600);
const SOON: Duration = Duration::from_mins(1);

fn guest() -> Guest {
    Guest { hold: Hold(Hold::TIMER.0 | Hold::STOLEN.0), ..Guest::new(Work::Patterns, Mode::Long) }
}

/// What each vCPU was told, all in all.
fn told(vm: &Vm<'_>) -> Vec<Duration> {
    let word = |index| vm.ram.u64(layout::area(index) + layout::STOLEN).load(Ordering::Relaxed);
    (0..CPUS).map(|index| Duration::from_nanos(word(index))).collect()
}

/// Does something with the guest: each vCPU must be told of at least so much time, and of no more than that took.
fn tells<'h>(
    vm: &mut Vm<'h>,
    least: Duration,
    what: impl FnOnce(&mut Vm<'h>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (began, before) = (Instant::now(), told(vm));
    what(vm)?;
    vm.goes_on()?;
    for (vcpu, (before, after)) in before.into_iter().zip(told(vm)).enumerate() {
        let (more, passed) = (after.saturating_sub(before), began.elapsed());
        ensure!(
            more > least && more <= passed,
            "vCPU {vcpu} was told of {more:?}, of {passed:?} that have passed; expected more than {least:?}"
        );
    }
    Ok(())
}

fn pause(vm: &mut Vm<'_>) -> anyhow::Result<()> {
    vm.save("stop", &[])?.must_be(0)?;
    std::thread::sleep(PAUSE);
    vm.save("cont", &[])?.must_be(0).map(drop)
}

fn a_pause_is_told() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = Vm::boot(&host, Spec::new(guest(), CPUS))?;
    tells(&mut vm, PAUSE, pause)?;
    // What was told once is not told again.
    tells(&mut vm, PAUSE, pause)
}

fn each_mode_tells_it() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = Vm::boot(&host, Spec::new(guest(), CPUS))?;
    for mode in CprMode::ALL {
        let what = |vm: &mut Vm<'_>| vm.handover(mode).map(drop);
        tells(&mut vm, Duration::ZERO, what).with_context(|| mode.to_string())?;
    }
    Ok(())
}

fn the_time_between_a_save_and_its_load_is_told_in_place_and_copied() -> anyhow::Result<()> {
    let host = Host::new()?;
    for (ram_file, lazily) in [(true, false), (false, false), (false, true)] {
        let mut vm = Vm::boot(&host, Spec { ram_file, ..Spec::new(guest(), CPUS) })?;
        let what = |vm: &mut Vm<'_>| {
            let file = if ram_file {
                let file = host.fresh("state");
                vm.save("reboot", &["--to", &format!("file:{}", file.display())])?.must_be(0)?;
                vm.ended()?;
                file
            } else {
                vm.save_with_ram()?
            };
            std::thread::sleep(PAUSE);
            let from = format!("file:{}", file.display());
            let mut arguments = vec!["resume", "--from", &from];
            arguments.extend(lazily.then_some("--lazy"));
            vm.process = host.load(arguments)?;
            if lazily {
                // Who maps RAM that is not there yet makes pages of it.
                vm.process.says("all of the guest's RAM is there", SOON)?;
            }
            vm.find_ram()
        };
        tells(&mut vm, PAUSE, what).with_context(|| format!("RAM in a file {ram_file}, lazily {lazily}"))?;
    }
    Ok(())
}

fn a_paused_guest_that_is_handed_over_is_told_when_it_goes_on() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = Vm::boot(&host, Spec::new(guest(), CPUS))?;
    let what = |vm: &mut Vm<'_>| {
        vm.save("stop", &[])?.must_be(0)?;
        std::thread::sleep(PAUSE);
        vm.transfer()?;
        std::thread::sleep(PAUSE);
        vm.save("cont", &[])?.must_be(0).map(drop)
    };
    tells(&mut vm, PAUSE * 2, what)
}

fn a_guest_that_comes_back_is_told() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = Vm::boot(&host, Spec::new(guest(), CPUS))?;
    let load = binary("cpr-load")?;
    let turncoat = host.turncoat(&format!("exec {} \"$@\" --set cpu.mask=sse3", load.display()))?;
    let what = |vm: &mut Vm<'_>| vm.save("exec", &["--", &turncoat])?.must_say(1, "sse3").map(drop);
    tells(&mut vm, Duration::ZERO, what)
}

fn a_guest_that_does_not_ask_is_not_told() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = Vm::boot(&host, Spec::new(Guest { hold: Hold::TIMER, ..guest() }, CPUS))?;
    pause(&mut vm)?;
    vm.goes_on()?;
    vm.transfer()?;
    vm.goes_on()?;
    ensure!(told(&vm).iter().all(Duration::is_zero), "it was told of {:?}", told(&vm));
    Ok(())
}
