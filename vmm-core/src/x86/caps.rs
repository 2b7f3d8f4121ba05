//! What this host's KVM can do, and what is switched on in a VM.
//!
//! 1. [`HostCaps::probe`] runs once a process; it fails only for what this VMM cannot do without, and names all of it.
//! 2. [`VmCaps`] is decided at a cold boot, travels with the guest, and is enabled identically wherever it goes: it
//!    cannot be read back from KVM, and it changes what saved state means.

use kvm_bindings::{
    KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_SREGS2, KVM_CAP_X2APIC_API, KVM_CAP_X86_TRIPLE_FAULT_EVENT,
    KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS, kvm_enable_cap,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use serde::{Deserialize, Serialize};
use vmm_sys_util::errno;

use super::cpuid::CpuidEntry;
use crate::vcpu::ioctls;

/// The version of KVM's interface; it has not changed since Linux 2.6.22.
const API_VERSION: i32 = 12;
/// `IA32_MCG_CAP`: the number of banks.
const MCG_BANK_COUNT: u64 = 0xff;
/// `IA32_MCG_CAP`: `IA32_MCG_CTL` is there.
const MCG_CTL_P: u64 = 1 << 8;
/// `IA32_MCG_CAP`: errors that software can recover from are reported.
const MCG_SER_P: u64 = 1 << 24;
/// Machine check banks that a guest gets.
const MCE_BANKS: u64 = 10;

/// Why this host cannot run, or not load, a guest.
#[derive(Debug, thiserror::Error)]
pub enum CapsError {
    /// KVM speaks another interface.
    #[error("/dev/kvm has interface version {found}; expected {API_VERSION}")]
    ApiVersion {
        /// What it says.
        found: i32,
    },
    /// Capabilities that this VMM cannot do without.
    #[error("this host's KVM lacks {}; Linux 5.14 or newer has them", .0.join(", "))]
    Missing(Vec<&'static str>),
    /// Capabilities that are switched on in the guest.
    #[error("the guest was started with {}, which this host's KVM lacks", .0.join(", "))]
    GuestNeeds(Vec<&'static str>),
    /// An ioctl failed.
    #[error("{doing}: {source}")]
    Ioctl {
        /// Which, with what.
        doing: &'static str,
        /// What the kernel answered.
        source: errno::Error,
    },
}

impl CapsError {
    fn ioctl(doing: &'static str) -> impl FnOnce(errno::Error) -> Self {
        move |source| Self::Ioctl { doing, source }
    }
}

/// What this VMM cannot do without.
const REQUIRED: [(Cap, &str); 22] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Hlt, "KVM_CAP_HLT"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::PitState2, "KVM_CAP_PIT_STATE2"),
    (Cap::Mce, "KVM_CAP_MCE"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
    (Cap::GetTscKhz, "KVM_CAP_GET_TSC_KHZ"),
    (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::EnableCapVm, "KVM_CAP_ENABLE_CAP_VM"),
];

/// What this host's KVM can do. Probed once a process.
#[derive(Debug, Clone)]
pub struct HostCaps {
    /// The most vCPUs a VM may have.
    pub max_vcpus: usize,
    /// CPUID as KVM can show it (`KVM_GET_SUPPORTED_CPUID`).
    pub supported_cpuid: Vec<CpuidEntry>,
    /// MSRs that KVM says it keeps for a vCPU (`KVM_GET_MSR_INDEX_LIST`).
    pub msrs: Vec<u32>,
    /// `IA32_MCG_CAP` bits and banks that a vCPU can have.
    pub mce_cap: u64,
    /// Whether a vCPU's TSC can run at another rate than the host's, scaled by hardware.
    pub tsc_control: bool,
    /// Whether the LAPIC timer has a TSC deadline mode.
    pub tsc_deadline: bool,
    /// Flags that `KVM_GET_CLOCK` may return (`KVM_CLOCK_*`).
    pub clock_flags: u32,
    /// Bytes of the largest nested state; 0 where KVM has none.
    pub nested_state_size: usize,
    /// Everything that can be switched on in a VM here.
    pub vm: VmCaps,
}

impl HostCaps {
    /// Finds out what KVM can do here.
    pub fn probe(kvm: &Kvm) -> Result<Self, CapsError> {
        let found = kvm.get_api_version();
        if found != API_VERSION {
            return Err(CapsError::ApiVersion { found });
        }
        let raw = |cap: u32| kvm.check_extension_raw(cap.into()).max(0);
        let mut missing: Vec<_> =
            REQUIRED.iter().filter(|(cap, _)| !kvm.check_extension(*cap)).map(|(_, name)| *name).collect();
        if raw(KVM_CAP_SREGS2) == 0 {
            missing.push("KVM_CAP_SREGS2");
        }
        if !missing.is_empty() {
            return Err(CapsError::Missing(missing));
        }
        let cpuid = kvm
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(CapsError::ioctl("KVM_GET_SUPPORTED_CPUID"))?;
        let msrs = kvm.get_msr_index_list().map_err(CapsError::ioctl("KVM_GET_MSR_INDEX_LIST"))?;
        let mce_cap = ioctls::supported_mce_cap(kvm)
            .map_err(CapsError::ioctl("KVM_X86_GET_MCE_CAP_SUPPORTED"))?
            & !MCG_BANK_COUNT;
        let x2apic_flags = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
        Ok(Self {
            max_vcpus: kvm.get_max_vcpus(),
            supported_cpuid: cpuid.as_slice().iter().map(CpuidEntry::from).collect(),
            msrs: msrs.as_slice().to_vec(),
            mce_cap: mce_cap | raw(Cap::Mce as u32) as u64,
            tsc_control: kvm.check_extension(Cap::TscControl),
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
            clock_flags: kvm.check_extension_int(Cap::AdjustClock).max(0) as u32,
            nested_state_size: raw(Cap::NestedState as u32) as usize,
            vm: VmCaps {
                x2apic_api: raw(KVM_CAP_X2APIC_API) as u32 & x2apic_flags,
                exception_payload: raw(KVM_CAP_EXCEPTION_PAYLOAD) != 0,
                triple_fault_event: raw(KVM_CAP_X86_TRIPLE_FAULT_EVENT) != 0,
                mcg_cap: mce_cap & (MCG_CTL_P | MCG_SER_P) | MCE_BANKS.min(raw(Cap::Mce as u32) as u64),
            },
        })
    }
}

/// What is switched on in a VM. On the wire: it is the same on both sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmCaps {
    /// `KVM_CAP_X2APIC_API` flags; they change the layout of the saved LAPIC.
    pub x2apic_api: u32,
    /// `KVM_CAP_EXCEPTION_PAYLOAD`: a pending exception and an injected one are told apart.
    pub exception_payload: bool,
    /// `KVM_CAP_X86_TRIPLE_FAULT_EVENT`: a pending triple fault is saved.
    pub triple_fault_event: bool,
    /// `IA32_MCG_CAP` of each vCPU.
    pub mcg_cap: u64,
}

impl VmCaps {
    /// Checks that this host can do what the guest was started with.
    pub fn check(&self, host: &HostCaps) -> Result<(), CapsError> {
        let lacks = [
            (self.x2apic_api & !host.vm.x2apic_api != 0, "KVM_CAP_X2APIC_API"),
            (self.exception_payload && !host.vm.exception_payload, "KVM_CAP_EXCEPTION_PAYLOAD"),
            (self.triple_fault_event && !host.vm.triple_fault_event, "KVM_CAP_X86_TRIPLE_FAULT_EVENT"),
            (self.mcg_cap & !MCG_BANK_COUNT & !host.mce_cap != 0, "an IA32_MCG_CAP bit"),
            (self.mcg_cap & MCG_BANK_COUNT > host.mce_cap & MCG_BANK_COUNT, "machine check banks"),
        ];
        let lacks: Vec<_> = lacks.iter().filter(|(lacks, _)| *lacks).map(|(_, name)| *name).collect();
        if lacks.is_empty() { Ok(()) } else { Err(CapsError::GuestNeeds(lacks)) }
    }

    /// Switches the capabilities on. Call it on a fresh VM, before its interrupt chips and vCPUs are made.
    pub fn enable(&self, vm: &VmFd) -> Result<(), CapsError> {
        let caps = [
            (KVM_CAP_X2APIC_API, u64::from(self.x2apic_api), "KVM_ENABLE_CAP X2APIC_API"),
            (KVM_CAP_EXCEPTION_PAYLOAD, self.exception_payload.into(), "KVM_ENABLE_CAP EXCEPTION_PAYLOAD"),
            (
                KVM_CAP_X86_TRIPLE_FAULT_EVENT,
                self.triple_fault_event.into(),
                "KVM_ENABLE_CAP TRIPLE_FAULT_EVENT",
            ),
        ];
        for (cap, arg, doing) in caps {
            if arg != 0 {
                let cap = kvm_enable_cap { cap, args: [arg, 0, 0, 0], ..Default::default() };
                vm.enable_cap(&cap).map_err(CapsError::ioctl(doing))?;
            }
        }
        Ok(())
    }
}
