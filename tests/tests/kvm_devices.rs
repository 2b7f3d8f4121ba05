//! Devices on the PCI bus survive each mode: no request and no interrupt is lost.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use cpr_tests::guests::{Guest, Mode, Work};
use cpr_tests::harness::host::Host;
use cpr_tests::harness::proxy::{Action, Proxy};
use cpr_tests::harness::ram::Ram;
use cpr_tests::harness::runner::Tier;
use cpr_tests::harness::vm::{Spec, Vm};
use vmm_core::cpr::Mode as CprMode;
use vmm_core::cpr::transfer::message::{Message, State};

cpr_tests::tests!(
    Tier::Kvm,
    the_entropy_device_answers_and_interrupts_over_each_mode_in_every_processor_mode,
    twelve_handovers_in_a_row_leave_a_driver_that_waits_for_each_interrupt_at_work,
    a_paused_guests_device_goes_on_when_the_guest_does,
    a_handover_that_fails_with_the_guest_stopped_leaves_the_device_at_work_in_the_source,
    a_guest_that_is_reset_finds_its_device_again,
);

fn spec(mode: Mode) -> Spec {
    Spec {
        devices: vec!["virtio-rng-pci,id=rng0,addr=7".into()],
        ..Spec::new(Guest::new(Work::Device, mode), 1)
    }
}

/// The driver makes requests, and hears of their ends by interrupts alone.
fn works(vm: &Vm<'_>) -> anyhow::Result<()> {
    vm.ram.wait_for("its count of answers", 1, 50, Ram::count)?;
    vm.ram.wait_for("its count of interrupts", 1, 50, Ram::ticks)
}

fn the_entropy_device_answers_and_interrupts_over_each_mode_in_every_processor_mode() -> anyhow::Result<()> {
    for mode in Mode::ALL {
        let host = Host::new()?;
        let mut vm = Vm::boot(&host, spec(mode))?;
        works(&vm)?;
        for way in CprMode::ALL {
            vm.handover(way).and_then(|_| works(&vm)).with_context(|| format!("{mode:?} over {way}"))?;
        }
    }
    Ok(())
}

fn twelve_handovers_in_a_row_leave_a_driver_that_waits_for_each_interrupt_at_work() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = Vm::boot(&host, spec(Mode::Long))?;
    for round in 0..12 {
        let way = CprMode::ALL[round % 3];
        vm.handover(way).and_then(|_| works(&vm)).with_context(|| format!("handover {round}, {way}"))?;
    }
    Ok(())
}

fn a_paused_guests_device_goes_on_when_the_guest_does() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = Vm::boot(&host, spec(Mode::Protected))?;
    for way in CprMode::ALL {
        vm.ask("stop")?;
        vm.handover(way)?;
        vm.becomes("paused")?;
        vm.stands_still().with_context(|| format!("over {way}"))?;
        vm.ask("cont")?;
        works(&vm).with_context(|| format!("over {way}"))?;
    }
    Ok(())
}

fn a_guest_that_is_reset_finds_its_device_again() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = Vm::boot(&host, Spec { ram_file: false, ..spec(Mode::Long) })?;
    vm.handover(CprMode::CprTransfer)?;
    vm.ask("system_reset")?;
    // Its RAM is a new one.
    std::thread::sleep(Duration::from_millis(500));
    vm.ram = Arc::new(vm.process.memfd("pc.ram")?);
    works(&vm)
}

fn a_handover_that_fails_with_the_guest_stopped_leaves_the_device_at_work_in_the_source() -> anyhow::Result<()>
{
    let host = Host::new()?;
    let mut vm = Vm::boot(&host, spec(Mode::Long))?;
    for _ in 0..5 {
        let target = host.target()?;
        let proxy = Proxy::start(host.fresh("proxy"), &target.socket, |crossing| {
            if crossing.frame.kind == State::KIND { Action::Close } else { Action::Pass }
        })?;
        vm.save("transfer", &["--to", &format!("unix:{}", proxy.socket.display())])?.must_be(1)?;
        vm.becomes("running")?;
        works(&vm)?;
    }
    vm.transfer()?;
    works(&vm)
}
