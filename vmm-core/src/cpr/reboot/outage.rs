//! How long a saved guest stood, and for what.

use crate::cpr::Mode;
use crate::cpr::report::{PhaseTime, Report, Stopwatch};
use crate::machine::Machine;
use crate::machine::run_state::RunState;
use crate::x86::clock::{ClockState, Stood};

/// How a load went, and what came before it.
pub(super) fn report(
    machine: &Machine,
    clock: &ClockState,
    watch: &Stopwatch,
    state_bytes: u64,
    copied: bool,
) -> Report {
    let (total_us, ram) = (watch.total(), machine.ram_size());
    // A guest that was paused did not stand for it.
    let ran = machine.run_state() == RunState::Running || machine.will_be_woken();
    let stood = ran.then(|| clock.stood()).and_then(Result::ok);
    let mut phases = stood.map_or(Vec::new(), |stood| before(stood, total_us));
    phases.extend_from_slice(watch.laps());
    Report {
        mode: Mode::CprReboot,
        downtime_us: stood.map(|stood| stood.ns / 1000),
        clock: stood.map(|stood| stood.by),
        total_us,
        phases,
        state_bytes,
        descriptors: 0,
        vcpus: machine.vcpu_count(),
        ram_kept: if copied { 0 } else { ram },
        ram_copied: if copied { ram } else { 0 },
    }
}

/// What a guest waited for before a load of `load_us` began.
fn before(stood: Stood, load_us: u64) -> Vec<PhaseTime> {
    let waited = (stood.ns / 1000).saturating_sub(load_us);
    let phase = |name: &str, us| PhaseTime { phase: name.into(), us };
    match stood.up_ns {
        None => vec![phase("waited", waited)],
        Some(up_ns) => {
            let boot = (up_ns / 1000).saturating_sub(load_us).min(waited);
            vec![phase("until the next kernel", waited - boot), phase("its boot until the load", boot)]
        }
    }
}
