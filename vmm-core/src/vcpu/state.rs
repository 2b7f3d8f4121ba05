//! The wire form of a vCPU's state.

use kvm_bindings::{kvm_debugregs, kvm_lapic_state, kvm_regs, kvm_vcpu_events, kvm_xcrs};
use serde::{Deserialize, Serialize};
use vmm_sys_util::errno;

use super::ioctls::Sregs2;
use crate::cpr::format::{FormatError, KernelBytes, Section, SectionKind};
use crate::x86::msr::MsrError;

/// Why a vCPU's state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum VcpuStateError {
    /// An ioctl failed.
    #[error("vcpu {vcpu}: {ioctl}: {source}")]
    Ioctl {
        /// The vCPU's index.
        vcpu: u32,
        /// The ioctl.
        ioctl: &'static str,
        /// What the kernel answered.
        source: errno::Error,
    },
    /// A model-specific register could not be read or written.
    #[error("vcpu {vcpu}: {source}")]
    Msr {
        /// The vCPU's index.
        vcpu: u32,
        /// Which, and why.
        source: MsrError,
    },
    /// A kernel structure in the state has another size than here.
    #[error("vcpu {vcpu}: {source}")]
    Format {
        /// The vCPU's index.
        vcpu: u32,
        /// Which, and both sizes.
        source: FormatError,
    },
    /// The state holds something that this host's vCPU cannot take.
    #[error("vcpu {vcpu}: {part} is {found}; this host takes {expected}")]
    Unfit {
        /// The vCPU's index.
        vcpu: u32,
        /// Which part of the state.
        part: &'static str,
        /// What the state holds.
        found: String,
        /// What would do.
        expected: String,
    },
    /// The guest's TSC cannot run at the rate that it was shown.
    #[error(
        "vcpu {vcpu}: the guest was shown a TSC of {guest_khz} kHz, this host's runs at {host_khz} kHz and KVM cannot scale it: {source}"
    )]
    TscRate {
        /// The vCPU's index.
        vcpu: u32,
        /// What the guest was shown.
        guest_khz: u32,
        /// What the host has.
        host_khz: u32,
        /// What the kernel answered to `KVM_SET_TSC_KHZ`.
        source: errno::Error,
    },
    /// The guest's TSC does not count.
    #[error(
        "vcpu {vcpu}: the guest's TSC stands still ({advanced} cycles in {host} of the host's): KVM took a wrong TSC rate at its start; load kvm with tsc_tolerance_ppm=5000, or boot the host with the right tsc_early_khz"
    )]
    TscStuck {
        /// The vCPU's index.
        vcpu: u32,
        /// How far the guest's TSC came.
        advanced: u64,
        /// How far the host's came meanwhile.
        host: u64,
    },
}

/// Names the vCPU in what a failed ioctl answered.
pub(super) fn ioctl(vcpu: u32, ioctl: &'static str) -> impl FnOnce(errno::Error) -> VcpuStateError {
    move |source| VcpuStateError::Ioctl { vcpu, ioctl, source }
}

/// A model-specific register and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msr {
    /// Which.
    pub index: u32,
    /// What it holds.
    pub value: u64,
}

/// Where a guest's TSC stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tsc {
    /// What is added to the (scaled) host TSC.
    Offset(u64),
    /// Both counters at one instant, where KVM does not tell the offset.
    Counters {
        /// The guest's.
        guest: u64,
        /// The host's.
        host: u64,
    },
}

/// A vCPU's state, but for what it was made with (`x86::platform`). The instance is its index.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VcpuState {
    /// General registers, instruction pointer and flags.
    pub regs: KernelBytes<kvm_regs>,
    /// Segments, control registers, EFER and PDPTRs.
    pub sregs: KernelBytes<Sregs2>,
    /// Exceptions, interrupts, NMIs and SMIs on their way.
    pub events: KernelBytes<kvm_vcpu_events>,
    /// `KVM_MP_STATE_*`: runnable, halted, waiting for INIT or SIPI.
    pub mp_state: u32,
    /// x87, SSE, AVX and further state, in the standard (not compacted) XSAVE format.
    pub xsave: Vec<u8>,
    /// Extended control registers.
    pub xcrs: KernelBytes<kvm_xcrs>,
    /// Debug registers.
    pub debugregs: KernelBytes<kvm_debugregs>,
    /// The local APIC's registers.
    pub lapic: KernelBytes<kvm_lapic_state>,
    /// Model-specific registers, in the order in which they are to be written.
    pub msrs: Vec<Msr>,
    /// What the guest's own hypervisor set up: a header and at most one state, as KVM's nested state.
    pub nested: Option<Vec<u8>>,
    /// The shadow stack pointer, where the host has shadow stacks.
    pub shadow_stack: Option<u64>,
    /// The time stamp counter.
    pub tsc: Tsc,
}

impl Section for VcpuState {
    const KIND: SectionKind = SectionKind::Vcpu;
    const VERSION: u16 = 1;
    const OLDEST: u16 = 1;
}
