//! A machine of this tier: a VM with interrupt chips, 64 KiB of RAM, and vCPUs that the test runs by hand.

use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use nix::unistd::gettid;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_core::config::CpuConfig;
use vmm_core::cpr::format::Section;
use vmm_core::vcpu::kick::{self, Kick};
use vmm_core::vcpu::plan::{VcpuPlan, prepare};
use vmm_core::vcpu::save::VcpuSaver;
use vmm_core::vcpu::state::VcpuState;
use vmm_core::vcpu::{ioctls, load, standstill, unhalt};
use vmm_core::x86::caps::HostCaps;
use vmm_core::x86::clock::{ClockState, Resumption};
use vmm_core::x86::irqchip::VmState;
use vmm_core::x86::platform::Platform;

use crate::guest::{Program, START};

/// /dev/kvm, or nothing, said aloud; a failure where `CPR_REQUIRE` asks for it.
pub fn kvm() -> Option<Kvm> {
    match Kvm::new() {
        Ok(kvm) => Some(kvm),
        Err(e) => {
            let required = std::env::var("CPR_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|tier| tier == "kvm"), "CPR_REQUIRE has kvm, but /dev/kvm: {e}");
            eprintln!("SKIPPED: /dev/kvm: {e}");
            None
        }
    }
}

/// Tries until it holds, for at most 20 s.
pub fn wait_until(mut holds: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        if holds() {
            return true;
        }
    }
    false
}

/// Where the guest has its kvmclock and its wall clock.
const PVCLOCK: u64 = 0x4000;
const WALL_CLOCK: u64 = 0x4100;

/// What kvmclock shows.
#[derive(Debug)]
pub struct Kvmclock {
    pub ns: u64,
    /// The guest was told that it stood still (`PVCLOCK_GUEST_STOPPED`).
    pub stopped: bool,
}

/// All of a machine's state but its RAM.
pub struct Saved {
    pub vcpus: Vec<VcpuState>,
    pub vm: VmState,
    pub clock: ClockState,
}

pub struct Machine {
    pub vcpus: Vec<VcpuFd>,
    pub plan: Arc<VcpuPlan>,
    pub platform: Platform,
    pub host: HostCaps,
    savers: Vec<VcpuSaver>,
    vm: VmFd,
    ram: GuestMemoryMmap,
}

impl Machine {
    fn new(kvm: &Kvm, host: HostCaps, mut platform: Platform, ram: GuestMemoryMmap) -> Self {
        let vm = kvm.create_vm().unwrap();
        platform.caps.enable(&vm).unwrap();
        vm.set_tss_address(0xfffb_d000).unwrap();
        vm.create_irq_chip().unwrap();
        vm.create_pit2(kvm_pit_config::default()).unwrap();
        let region = kvm_userspace_memory_region {
            memory_size: 0x10000,
            userspace_addr: ram.get_host_address(GuestAddress(0)).unwrap() as u64,
            ..Default::default()
        };
        // SAFETY: the memory is mapped for as long as the VM lives: both are this machine's.
        unsafe { vm.set_user_memory_region(region) }.unwrap();
        let vcpus: Vec<_> = (0..platform.cpuid.len()).map(|i| vm.create_vcpu(i as u64).unwrap()).collect();
        let mut khz = 0;
        for (index, vcpu) in vcpus.iter().enumerate() {
            khz = prepare(index as u32, vcpu, &platform).unwrap();
        }
        let plan = Arc::new(VcpuPlan::probe(&vm, &vcpus[0], &host, &platform, khz).unwrap());
        platform.tsc_khz = Some(plan.tsc_khz);
        let savers = (0..vcpus.len()).map(|i| VcpuSaver::new(i as u32, Arc::clone(&plan))).collect();
        Self { vcpus, plan, platform, host, savers, vm, ram }
    }

    /// A machine whose first vCPU is about to run this program in real mode.
    pub fn boot(kvm: &Kvm, cpus: u16, program: Program) -> Self {
        let host = HostCaps::probe(kvm).unwrap();
        let platform = Platform::new(&host, &CpuConfig::default(), cpus).unwrap();
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        ram.write_slice(program.bytes(), GuestAddress(START as u64)).unwrap();
        let machine = Self::new(kvm, host, platform, ram);
        for (index, vcpu) in machine.vcpus.iter().enumerate() {
            // x2APIC, so that the guests need no page tables to reach it.
            let mut sregs = ioctls::get_sregs2(vcpu).unwrap();
            sregs.apic_base |= 0xc00;
            if index == 0 {
                (sregs.cs.base, sregs.cs.selector) = (0, 0);
            }
            ioctls::set_sregs2(vcpu, &sregs).unwrap();
        }
        let mut regs = machine.vcpus[0].get_regs().unwrap();
        (regs.rip, regs.rsp, regs.rflags) = (START as u64, 0x8000, 2);
        machine.vcpus[0].set_regs(&regs).unwrap();
        machine
    }

    /// A machine of one vCPU, for the guests that use the LAPIC.
    pub fn boot_x2apic(kvm: &Kvm, program: Program) -> Self {
        Self::boot(kvm, 1, program)
    }

    /// A second machine over the same RAM, to load into.
    pub fn empty_like(kvm: &Kvm, other: &Self) -> Self {
        other.platform.check(&other.host, &CpuConfig::default()).unwrap();
        Self::new(kvm, other.host.clone(), other.platform.clone(), other.ram.clone())
    }

    pub fn has_tsc_offset(&self) -> bool {
        ioctls::has_tsc_offset(&self.vcpus[0])
    }

    /// Runs the first vCPU for so many exits by port 0x10, and leaves none half done.
    pub fn run_exits(&mut self, exits: u32) {
        self.run_exits_of(0, exits);
    }

    pub fn run_exits_of(&mut self, vcpu: usize, exits: u32) {
        let vcpu = &mut self.vcpus[vcpu];
        for _ in 0..exits {
            match vcpu.run().unwrap() {
                VcpuExit::IoOut(0x10, _) => {}
                exit => panic!("unexpected exit: {exit:?}"),
            }
        }
        vcpu.set_kvm_immediate_exit(1);
        assert_eq!(vcpu.run().unwrap_err().errno(), libc::EINTR);
        vcpu.set_kvm_immediate_exit(0);
    }

    /// The same of the first vCPU, which must not wait for longer than `bound` in all.
    pub fn run_exits_within(&mut self, exits: u32, bound: Duration) {
        let interrupt = Kick::new(&mut self.vcpus[0]);
        kick::unblock_here().unwrap();
        let (tid, (done, wait)) = (gettid().as_raw(), std::sync::mpsc::channel::<()>());
        let watch = std::thread::spawn(move || {
            if wait.recv_timeout(bound) == Err(RecvTimeoutError::Timeout) {
                interrupt.set();
                kick::interrupt(tid);
            }
        });
        self.run_exits(exits);
        drop(done);
        watch.join().unwrap();
    }

    /// What a guest's hypercall does that kicks the first vCPU.
    pub fn kick(&self) {
        unhalt::kick(&self.vm, 0).unwrap();
    }

    pub fn read(&self, at: usize) -> u32 {
        self.ram.read_obj(GuestAddress(at as u64)).unwrap()
    }

    pub fn read_u64(&self, at: usize) -> u64 {
        self.ram.read_obj(GuestAddress(at as u64)).unwrap()
    }

    /// Gives the first vCPU values that no reset leaves there.
    pub fn fill_with_patterns(&mut self) {
        let vcpu = &self.vcpus[0];
        let mut regs = vcpu.get_regs().unwrap();
        (regs.rbx, regs.rsi, regs.r8, regs.r15) = (0x1111, 0x2222, 0x3333_4444_5555_6666, !7);
        vcpu.set_regs(&regs).unwrap();
        let mut debug = vcpu.get_debug_regs().unwrap();
        (debug.db[0], debug.db[3]) = (0xdb0, 0xdb3);
        vcpu.set_debug_regs(&debug).unwrap();
        let msrs = PATTERN_MSRS.map(|(index, value)| vmm_core::vcpu::state::Msr { index, value });
        vmm_core::x86::msr::write(vcpu, msrs.iter()).unwrap();
        let size = ioctls::XsaveSize::of(&self.vm);
        let mut area = vec![0; size.bytes()];
        ioctls::get_xsave(vcpu, size, &mut area).unwrap();
        area[512] |= 3; // x87 and SSE are not in their initial state
        area[160..176].fill(0x5a);
        ioctls::set_xsave(vcpu, size, &area).unwrap();
    }

    /// Turns kvmclock on, as a guest would.
    pub fn enable_kvmclock(&self, system_time: u32, wall_clock: u32) {
        let msrs = [(system_time, PVCLOCK | 1), (wall_clock, WALL_CLOCK)]
            .map(|(index, value)| vmm_core::vcpu::state::Msr { index, value });
        vmm_core::x86::msr::write(&self.vcpus[0], msrs.iter()).unwrap();
    }

    /// Wipes what KVM wrote for kvmclock, so that what is there later was written later.
    pub fn clear_kvmclock(&self) {
        self.ram.write_slice(&[0; 32], GuestAddress(PVCLOCK)).unwrap();
        self.ram.write_slice(&[0; 12], GuestAddress(WALL_CLOCK)).unwrap();
    }

    /// kvmclock as the guest would have computed it where it read the TSC last (`struct pvclock_vcpu_time_info`).
    pub fn kvmclock(&self) -> Kvmclock {
        let at = |offset| GuestAddress(PVCLOCK + offset);
        let [stamp, system]: [u64; 2] = [8, 16].map(|offset| self.ram.read_obj(at(offset)).unwrap());
        let multiplier: u32 = self.ram.read_obj(at(24)).unwrap();
        let [shift, flags]: [u8; 2] = self.ram.read_obj(at(28)).unwrap();
        let delta = u128::from(self.read_u64(crate::guest::TSC).saturating_sub(stamp));
        let shift = shift.cast_signed();
        let delta = if shift < 0 { delta >> -shift } else { delta << shift };
        Kvmclock { ns: system + ((delta * u128::from(multiplier)) >> 32) as u64, stopped: flags & 2 != 0 }
    }

    /// The wall clock of the guest's boot in ns (`struct pvclock_wall_clock`).
    pub fn wall_clock(&self) -> u64 {
        let [seconds, ns]: [u32; 2] = self.ram.read_obj(GuestAddress(WALL_CLOCK + 4)).unwrap();
        u64::from(seconds) * 1_000_000_000 + u64::from(ns)
    }

    pub fn save(&self) -> Saved {
        let mut savers: Vec<_> =
            (0..self.vcpus.len()).map(|i| VcpuSaver::new(i as u32, Arc::clone(&self.plan))).collect();
        let states: Vec<_> =
            savers.iter().zip(&self.vcpus).map(|(s, v)| s.save_mp_state(v).unwrap()).collect();
        let vcpus = savers
            .iter_mut()
            .zip(&self.vcpus)
            .zip(states)
            .map(|((saver, vcpu), mp_state)| saver.save(vcpu, mp_state).unwrap())
            .collect();
        let vm = VmState::save(&self.vm).unwrap();
        Saved { vcpus, vm, clock: ClockState::save(&self.vm, self.plan.host_tsc_khz).unwrap() }
    }

    /// Loads, and says by how many ns kvmclock is off.
    pub fn load(&mut self, saved: &Saved) -> i64 {
        let clock = Resumption::new(&saved.clock, self.plan.tsc_khz, self.plan.host_tsc_khz).unwrap();
        for (index, (vcpu, state)) in self.vcpus.iter().zip(&saved.vcpus).enumerate() {
            load::load(index as u32, vcpu, state, &self.plan, &clock).unwrap();
        }
        saved.vm.load(&self.vm).unwrap();
        let off = clock.load_clock(&self.vm).unwrap();
        let stood = clock.stood().unwrap();
        for (index, (vcpu, state)) in self.vcpus.iter().zip(&saved.vcpus).enumerate() {
            load::after_clock(index as u32, vcpu, state).unwrap();
            standstill::tell(index, vcpu, &self.ram, &self.plan, stood);
        }
        for (index, (state, shown)) in saved.vcpus.iter().zip(&self.platform.cpuid).enumerate() {
            unhalt::unhalt(index as u32, &self.vm, state, shown).unwrap();
        }
        off
    }
}

/// SYSENTER_EIP, LSTAR, KERNEL_GS_BASE, a variable and a fixed MTRR, PAT, the status of machine check bank 3.
const PATTERN_MSRS: [(u32, u64); 7] = [
    (0x176, 0x1234_5678),
    (0xc000_0082, 0xffff_8000_1111_2222),
    (0xc000_0102, 0xffff_8000_3333_4444),
    (0x200, 0x8000_0006),
    (0x250, 0x0606_0606_0606_0606),
    (0x277, 0x0007_0406_0007_0406),
    (0x40d, 0x1234),
];

/// Checks that a state holds what [`Machine::fill_with_patterns`] wrote.
pub fn check_patterns(state: &VcpuState) {
    let regs = state.regs.get().unwrap();
    assert_eq!((regs.rbx, regs.rsi, regs.r8, regs.r15), (0x1111, 0x2222, 0x3333_4444_5555_6666, !7));
    assert_eq!(state.debugregs.get().unwrap().db, [0xdb0, 0, 0, 0xdb3]);
    assert_eq!(state.xsave[160..176], [0x5a; 16]);
    for (index, value) in PATTERN_MSRS {
        let found = state.msrs.iter().find(|msr| msr.index == index).map(|msr| msr.value);
        assert_eq!(found, Some(value), "MSR {index:#x}");
    }
}

pub const STEPS: [&str; 9] = [
    "save: MP state of a vCPU",
    "save: a vCPU",
    "save: interrupt chips and PIT",
    "save: clock",
    "load: a vCPU",
    "load: interrupt chips and PIT",
    "load: clock and after",
    "encoding a vCPU",
    "decoding a vCPU",
];

/// One handover of one vCPU, timed by step.
pub fn time(first: &mut Machine, second: &mut Machine) -> [Duration; 9] {
    let mut times = [Duration::ZERO; 9];
    let mut start = Instant::now();
    let mut lap = |step: usize| {
        times[step] = start.elapsed();
        start = Instant::now();
    };
    let mp_state = first.savers[0].save_mp_state(&first.vcpus[0]).unwrap();
    lap(0);
    let vcpu = first.savers[0].save(&first.vcpus[0], mp_state).unwrap();
    lap(1);
    let vm = VmState::save(&first.vm).unwrap();
    lap(2);
    let clock = ClockState::save(&first.vm, first.plan.host_tsc_khz).unwrap();
    lap(3);
    let resumption = Resumption::new(&clock, second.plan.tsc_khz, second.plan.host_tsc_khz).unwrap();
    load::load(0, &second.vcpus[0], &vcpu, &second.plan, &resumption).unwrap();
    lap(4);
    vm.load(&second.vm).unwrap();
    lap(5);
    resumption.load_clock(&second.vm).unwrap();
    load::after_clock(0, &second.vcpus[0], &vcpu).unwrap();
    lap(6);
    let bytes = vcpu.encode(VcpuState::VERSION).unwrap();
    lap(7);
    VcpuState::decode(VcpuState::VERSION, &bytes).unwrap();
    lap(8);
    times
}
