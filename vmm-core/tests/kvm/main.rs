//! vCPU, VM and clock state on a real /dev/kvm: saved from one VM, loaded into a second.
#![expect(clippy::unwrap_used, reason = "these are tests: what fails, fails the test")]

mod guest;
mod rig;

use std::time::{Duration, Instant};

use rig::{Machine, kvm, wait_until};
use vmm_core::cpr::format::Section;
use vmm_core::vcpu::load;
use vmm_core::vcpu::plan::tsc_advances;
use vmm_core::vcpu::state::{Tsc, VcpuState, VcpuStateError};
use vmm_core::x86::clock::{Basis, Resumption, host_tsc};
use vmm_core::x86::msr;

/// The LAPIC timer's current count: it runs on.
const TMCCT: std::ops::Range<usize> = 0x390..0x394;

/// The bytes of a vCPU's section but for the LAPIC timer's count.
fn standing(state: &VcpuState) -> Vec<u8> {
    let mut lapic = *state.lapic.get().unwrap();
    lapic.regs[TMCCT].fill(0);
    VcpuState { lapic: lapic.into(), ..state.clone() }.encode(VcpuState::VERSION).unwrap()
}

#[test]
fn a_machine_loaded_and_saved_again_gives_the_same_bytes() {
    let Some(kvm) = kvm() else { return };
    let mut first = Machine::boot(&kvm, 2, guest::COUNT);
    first.fill_with_patterns();
    first.run_exits(200);
    let saved = first.save();

    let mut second = Machine::empty_like(&kvm, &first);
    second.load(&saved);
    let again = second.save();

    for (before, after) in saved.vcpus.iter().zip(&again.vcpus) {
        assert_eq!(before.msrs, after.msrs);
        assert_eq!(before.regs, after.regs);
        assert_eq!(before.sregs, after.sregs);
        assert_eq!(before.xsave, after.xsave);
        assert!(standing(before) == standing(after), "the sections differ");
        assert!(matches!(after.tsc, Tsc::Offset(_)) || !first.has_tsc_offset());
    }
    let bytes = |vm: &vmm_core::x86::irqchip::VmState| vm.encode(1).unwrap();
    assert!(bytes(&saved.vm) == bytes(&again.vm), "the interrupt chips or the PIT differ");
    rig::check_patterns(&again.vcpus[0]);
}

#[test]
fn a_counting_guest_goes_on_where_it_was_and_its_tsc_with_it() {
    let Some(kvm) = kvm() else { return };
    let mut first = Machine::boot(&kvm, 1, guest::COUNT);
    first.run_exits(100);
    let (count, tsc) = (first.read(guest::COUNTER), first.read_u64(guest::TSC));
    let saved = first.save();
    let real_start = (Instant::now(), host_tsc());

    let mut second = Machine::empty_like(&kvm, &first);
    second.load(&saved);
    second.run_exits(1);
    let (next_count, next_tsc) = (second.read(guest::COUNTER), second.read_u64(guest::TSC));
    assert_eq!(next_count, count + 1);
    assert!(next_tsc > tsc, "the TSC went back from {tsc} to {next_tsc}");
    // In step with the host's: as far on as the host's, but for what the guest and the save took.
    let host = host_tsc() - real_start.1;
    assert!(next_tsc - tsc < host + 200_000_000, "{} cycles, {host} on the host", next_tsc - tsc);
    second.run_exits(100);
    assert_eq!(second.read(guest::COUNTER), count + 101);
}

#[test]
fn the_clocks_keep_their_distance_to_the_hosts_over_many_handovers() {
    let Some(kvm) = kvm() else { return };
    let mut machine = Machine::boot(&kvm, 2, guest::COUNT);
    let origin = machine.save();
    let (mut elapsed, mut drift, mut worst) = (0, 0, 0);
    for round in 0..20 {
        let mut saved = machine.save();
        // Every other time as a KVM that does not read clock and TSC as one would have it.
        saved.clock.paired &= round % 2 == 0;
        let mut next = Machine::empty_like(&kvm, &machine);
        std::thread::sleep(Duration::from_millis(3));
        worst = worst.max(next.load(&saved).abs());
        let after = next.save();
        for (before, after) in origin.vcpus.iter().zip(&after.vcpus) {
            if let (Tsc::Offset(before), Tsc::Offset(after)) = (before.tsc, after.tsc) {
                assert_eq!(before, after);
            }
        }
        // Over the handover alone: how a VM's clock runs meanwhile is KVM's, and off where it took the TSC's rate wrongly.
        let passed = (after.clock.boottime_ns - saved.clock.boottime_ns) as i64;
        elapsed += passed;
        drift += (after.clock.clock_ns - saved.clock.clock_ns) as i64 - passed;
        machine = next;
    }
    println!(
        "20 handovers in {elapsed} ns: kvmclock drifted {drift} ns, worst setting off by {worst} ns; paired: {}, nested state: {:?}",
        origin.clock.paired,
        origin.vcpus[0].nested.as_ref().map(Vec::len)
    );
    // NTP may slew CLOCK_BOOTTIME by 500 ppm against kvmclock.
    assert!(drift.abs() < 200_000 + elapsed / 1_000, "drift of {drift} ns in {elapsed} ns");
}

#[test]
fn kvmclock_as_the_guest_reads_it_goes_on_and_the_guest_is_told_that_it_stood() {
    const SYSTEM_TIME: u32 = 0x4b56_4d01;
    let Some(kvm) = kvm() else { return };
    let mut first = Machine::boot(&kvm, 1, guest::COUNT);
    first.enable_kvmclock(SYSTEM_TIME, msr::KVM_WALL_CLOCK);
    first.run_exits(5);
    let (before, wall_before) = (first.kvmclock(), first.wall_clock());
    let saved = first.save();
    first.clear_kvmclock();
    std::thread::sleep(Duration::from_millis(20));

    let mut second = Machine::empty_like(&kvm, &first);
    second.load(&saved);
    let wall_after = second.wall_clock();
    second.run_exits(5);
    let after = second.kvmclock();
    let host = second.save().clock.boottime_ns - saved.clock.boottime_ns;
    assert!(after.ns > before.ns && after.ns - before.ns >= 20_000_000, "{before:?} then {after:?}");
    assert!(after.ns - before.ns < host + 50_000_000, "{before:?} then {after:?}, {host} ns on the host");
    assert!(after.stopped && !before.stopped);
    // The wall clock of the boot is told again, the same but for what the host's clocks drift apart.
    assert!(wall_after.abs_diff(wall_before) < 5_000_000, "{wall_before} then {wall_after}");
}

#[test]
fn a_running_lapic_timer_goes_on_in_each_of_its_modes() {
    let Some(kvm) = kvm() else { return };
    for (mode, program) in [("periodic", guest::TIMER), ("TSC deadline", guest::DEADLINE)] {
        let mut first = Machine::boot_x2apic(&kvm, program);
        assert!(
            wait_until(|| {
                first.run_exits(50);
                first.read(guest::TICKS) >= 3
            }),
            "{mode}: the timer never fired before the handover"
        );
        let saved = first.save();
        let ticks = first.read(guest::TICKS);

        let mut second = Machine::empty_like(&kvm, &first);
        second.load(&saved);
        assert!(
            wait_until(|| {
                second.run_exits(50);
                second.read(guest::TICKS) >= ticks + 3
            }),
            "{mode}: no tick after the handover"
        );
    }
}

#[test]
fn an_init_that_was_pending_at_the_stop_is_not_taken_twice() {
    let Some(kvm) = kvm() else { return };
    // The first vCPU sends INIT and SIPI to the second, which has not run since.
    let mut first = Machine::boot(&kvm, 2, guest::WAKE);
    first.run_exits(1);
    let saved = first.save();
    assert_eq!(saved.vcpus[1].mp_state, kvm_bindings::KVM_MP_STATE_RUNNABLE);
    assert_eq!(saved.vcpus[1].events.get().unwrap().smi.latched_init, 0);

    let mut second = Machine::empty_like(&kvm, &first);
    second.load(&saved);
    assert_eq!(second.save().vcpus[1].mp_state, kvm_bindings::KVM_MP_STATE_RUNNABLE);
    second.run_exits_of(1, 1);
    assert_eq!(second.read(guest::WOKEN), 1, "the second vCPU did not start at its SIPI's vector");
}

#[test]
fn an_exception_that_was_pending_at_the_stop_is_pending_after_the_load() {
    let Some(kvm) = kvm() else { return };
    let first = Machine::boot(&kvm, 1, guest::COUNT);
    let mut events = first.vcpus[0].get_vcpu_events().unwrap();
    let told_apart = first.platform.caps.exception_payload;
    (events.exception.nr, events.exception.has_error_code, events.exception.error_code) = (14, 1, 2);
    (events.exception.pending, events.exception.injected) = (told_apart.into(), (!told_apart).into());
    first.vcpus[0].set_vcpu_events(&events).unwrap();
    let saved = first.save();
    assert_eq!(saved.vcpus[0].events.get().unwrap().exception, events.exception);

    let mut second = Machine::empty_like(&kvm, &first);
    second.load(&saved);
    assert_eq!(second.save().vcpus[0].events.get().unwrap().exception, events.exception);
}

#[test]
fn a_kick_that_came_before_the_halt_ends_it_after_the_load() {
    let Some(kvm) = kvm() else { return };
    let mut first = Machine::boot(&kvm, 1, guest::WAIT);
    first.run_exits(1);
    first.kick();
    let saved = first.save();
    assert_eq!(saved.vcpus[0].mp_state, kvm_bindings::KVM_MP_STATE_RUNNABLE);

    let mut second = Machine::empty_like(&kvm, &first);
    second.load(&saved);
    second.run_exits_within(1, Duration::from_secs(20));
}

#[test]
fn the_tsc_advances_here() {
    let Some(kvm) = kvm() else { return };
    let machine = Machine::boot(&kvm, 1, guest::COUNT);
    tsc_advances(0, &machine.vcpus[0], &machine.plan).unwrap();
}

#[test]
fn without_a_tsc_offset_the_counter_is_written_and_does_not_step_back() {
    let Some(kvm) = kvm() else { return };
    let first = Machine::boot(&kvm, 2, guest::COUNT);
    let mut saved = first.save();
    for (vcpu, state) in first.vcpus.iter().zip(&mut saved.vcpus) {
        let before = host_tsc();
        let guest = msr::read_one(vcpu, msr::IA32_TSC).unwrap();
        state.tsc = Tsc::Counters { guest, host: before.midpoint(host_tsc()) };
    }
    let mut second = Machine::empty_like(&kvm, &first);
    second.load(&saved);
    for (state, vcpu) in saved.vcpus.iter().zip(&second.vcpus) {
        let Tsc::Counters { guest, host } = state.tsc else { unreachable!() };
        let passed = host_tsc() - host;
        let now = msr::read_one(vcpu, msr::IA32_TSC).unwrap();
        assert!(now > guest);
        let off = (now - guest).abs_diff(passed);
        assert!(off < 2_000_000, "{off} cycles out of step");
    }
    if second.has_tsc_offset() {
        let again = second.save();
        assert_eq!(again.vcpus[0].tsc, again.vcpus[1].tsc, "the vCPUs are apart");
    }
}

#[test]
fn what_a_vcpu_does_not_take_is_refused_by_name() {
    let Some(kvm) = kvm() else { return };
    let first = Machine::boot(&kvm, 1, guest::COUNT);
    let saved = first.save();
    let second = Machine::empty_like(&kvm, &first);
    let clock = Resumption::new(&saved.clock, second.plan.tsc_khz, second.plan.host_tsc_khz).unwrap();
    assert!(matches!(clock.basis(), Basis::HostTsc | Basis::Boottime));
    let refused = |change: &dyn Fn(&mut VcpuState)| {
        let mut state = saved.vcpus[0].clone();
        change(&mut state);
        load::load(0, &second.vcpus[0], &state, &second.plan, &clock).unwrap_err().to_string()
    };
    let message = refused(&|s| s.msrs.push(vmm_core::vcpu::state::Msr { index: 0xdead_0000, value: 1 }));
    assert!(message.contains("vcpu 0") && message.contains("MSR 0xdead0000"), "{message}");
    let message = refused(&|s| s.xsave.truncate(100));
    assert!(message.contains("XSAVE area is 100 bytes"), "{message}");
    let message = refused(&|s| s.xsave.resize(1 << 16, 1));
    assert!(message.contains("XSAVE"), "{message}");
    let message = refused(&|s| s.mp_state = 77);
    assert!(message.contains("KVM_SET_MP_STATE"), "{message}");
    let message = refused(&|s| s.nested = Some(vec![0xff; 300]));
    assert!(message.contains("nested") || message.contains("NESTED"), "{message}");
    let message = refused(&|s| {
        let mut sregs = *s.sregs.get().unwrap();
        sregs.efer = !0;
        s.sregs = sregs.into();
    });
    assert!(message.contains("KVM_SET_SREGS2"), "{message}");
    // A register that this host does not have, and that the guest did not use, is no loss.
    let mut state = saved.vcpus[0].clone();
    state.msrs.insert(0, vmm_core::vcpu::state::Msr { index: 0xdead_0000, value: 0 });
    load::load(0, &second.vcpus[0], &state, &second.plan, &clock).unwrap();
}

#[test]
fn a_tsc_rate_that_the_host_cannot_give_is_refused() {
    let Some(kvm) = kvm() else { return };
    let first = Machine::boot(&kvm, 1, guest::COUNT);
    if first.host.tsc_control {
        eprintln!("SKIPPED: this host scales the TSC to any rate");
        return;
    }
    let mut platform = first.platform.clone();
    platform.tsc_khz = Some(first.plan.host_tsc_khz / 2);
    let vm = kvm.create_vm().unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    let error = vmm_core::vcpu::plan::prepare(0, &vcpu, &platform).unwrap_err();
    assert!(matches!(error, VcpuStateError::TscRate { .. }), "{error}");
}

#[test]
fn a_host_without_a_shown_feature_is_named_and_one_with_all_is_not() {
    let Some(kvm) = kvm() else { return };
    let machine = Machine::boot(&kvm, 2, guest::COUNT);
    let mut cpu = vmm_core::config::CpuConfig::default();
    machine.platform.check(&machine.host, &cpu).unwrap();
    cpu.mask = vec!["x2apic".into(), "sse2".into(), "kvm_steal_time".into()];
    let message = machine.platform.check(&machine.host, &cpu).unwrap_err().to_string();
    for name in &cpu.mask {
        assert!(message.contains(name.as_str()), "{message}");
    }
    cpu.mask = vec!["x3apic".into()];
    let message = machine.platform.check(&machine.host, &cpu).unwrap_err().to_string();
    assert!(message.contains("'x3apic'") && message.contains("x2apic"), "{message}");
}

#[test]
fn how_long_save_and_load_take() {
    let Some(kvm) = kvm() else { return };
    let mut first = Machine::boot(&kvm, 1, guest::COUNT);
    first.fill_with_patterns();
    first.run_exits(10);
    let mut figures = Vec::new();
    for _ in 0..20 {
        let mut second = Machine::empty_like(&kvm, &first);
        figures.push(rig::time(&mut first, &mut second));
    }
    for (step, name) in rig::STEPS.iter().enumerate() {
        let mut times: Vec<_> = figures.iter().map(|f| f[step]).collect();
        times.sort_unstable();
        println!("{name}: median {:?}, best {:?}", times[times.len() / 2], times[0]);
    }
    println!(
        "{} MSRs; vCPU section {} bytes",
        first.plan.msrs.indices().len(),
        first.save().vcpus[0].encode(1).unwrap().len()
    );
}
