//! Boots a bare-metal heartbeat guest on this machine's /dev/kvm, moves it in every mode, and prints how long it stood
//! still: as the commands report it, and as its heartbeat shows from outside.

use anyhow::{Context, Result, ensure};
use cpr_tests::guests::{Guest, Mode, Work};
use cpr_tests::harness::host::Host;
use cpr_tests::harness::vm::{Spec, Vm};
use cpr_tests::harness::watch::Watcher;
use vmm_core::cpr;

const CPUS: u64 = 2;

fn main() -> Result<()> {
    let host = Host::new()?;
    let mut vm = Vm::boot(&host, Spec::new(Guest::new(Work::Heartbeat, Mode::Long), CPUS))?;
    println!("{} runs with {CPUS} vCPUs in process {}", vm.name, vm.process.pid());
    for mode in [cpr::Mode::CprTransfer, cpr::Mode::CprExec, cpr::Mode::CprReboot] {
        let watcher = Watcher::start(vm.ram.clone());
        let outcome = vm.handover(mode).and_then(|outcome| outcome.must_be(0)).context(mode)?;
        vm.goes_on().with_context(|| format!("after {mode}"))?;
        let seen = watcher.finish()?;
        ensure!(seen.beats > 0, "no heartbeat was seen around {mode}");
        let reported = outcome.facts["report"]["downtime-us"].as_f64();
        println!(
            "{:<13} downtime {:>10}, seen from outside {:>8.2} ms; the guest is in process {}",
            mode.to_string(),
            reported.map_or("-".into(), |us| format!("{:.2} ms", us / 1e3)),
            seen.longest().as_secs_f64() * 1e3,
            vm.process.pid()
        );
    }
    Ok(())
}
