//! What is found out and set up for the vCPUs while the guest still runs, so that the downtime need not.
//!
//! 1. [`prepare`] gives a fresh vCPU what never changes in its life: CPUID, machine check banks, TSC rate.
//! 2. [`VcpuPlan::probe`] learns, once a VM, what of a vCPU can be read here and how large it is.
//! 3. [`tsc_advances`] refuses a host whose KVM has lost the TSC, before a guest depends on it.

use std::time::Duration;

use kvm_bindings::{CpuId, KVM_REG_GUEST_SSP, kvm_x86_reg_kvm};
use kvm_ioctls::{VcpuFd, VmFd};

use super::ioctls::{self, XsaveSize};
use super::state::{VcpuStateError, ioctl};
use crate::x86::caps::HostCaps;
use crate::x86::clock::{host_tsc, mul_div};
use crate::x86::cpuid::CpuidEntry;
use crate::x86::msr::{self, MsrPlan};
use crate::x86::platform::Platform;

/// The shadow stack pointer's register id.
pub(super) const SSP: u64 = kvm_x86_reg_kvm(KVM_REG_GUEST_SSP);

/// How long the TSC is watched for.
const TSC_WATCH: Duration = Duration::from_millis(2);

/// Makes a fresh vCPU what the guest was shown, and returns the rate of the host's TSC in kHz. Before it runs, and before
/// [`VcpuPlan::probe`].
pub fn prepare(index: u32, vcpu: &VcpuFd, platform: &Platform) -> Result<u32, VcpuStateError> {
    let unfit = |found: String, expected: String| VcpuStateError::Unfit {
        vcpu: index,
        part: "CPUID",
        found,
        expected,
    };
    let entries = platform.cpuid.get(index as usize).ok_or_else(|| {
        unfit("not there".into(), format!("one table for each of {} vCPUs", platform.cpuid.len()))
    })?;
    let entries: Vec<_> = entries.iter().map(CpuidEntry::to_kvm).collect();
    let cpuid = CpuId::from_entries(&entries)
        .map_err(|_| unfit(format!("{} entries", entries.len()), "at most 256".into()))?;
    vcpu.set_cpuid2(&cpuid).map_err(ioctl(index, "KVM_SET_CPUID2"))?;
    ioctls::setup_mce(vcpu, platform.caps.mcg_cap).map_err(ioctl(index, "KVM_X86_SETUP_MCE"))?;
    let host_khz = vcpu.get_tsc_khz().map_err(ioctl(index, "KVM_GET_TSC_KHZ"))?;
    // Where the rates are the same, setting it again can fail or stop the TSC (kernels that calibrate the TSC twice).
    if let Some(guest_khz) = platform.tsc_khz.filter(|khz| *khz != host_khz) {
        vcpu.set_tsc_khz(guest_khz).map_err(|source| VcpuStateError::TscRate {
            vcpu: index,
            guest_khz,
            host_khz,
            source,
        })?;
    }
    Ok(host_khz)
}

/// What of a vCPU can be read and written on this host, the same for every vCPU of a VM.
#[derive(Debug, Clone)]
pub struct VcpuPlan {
    /// The registers that are saved one by one.
    pub msrs: MsrPlan,
    /// The XSAVE area.
    pub(super) xsave: XsaveSize,
    /// Bytes of the largest nested state; 0 where KVM has none.
    pub(super) nested: usize,
    /// Whether the TSC offset can be read and written.
    pub(super) tsc_offset: bool,
    /// Whether there is a shadow stack pointer.
    pub(super) shadow_stack: bool,
    /// The rate of the guest's TSC in kHz.
    pub tsc_khz: u32,
    /// The rate of the host's TSC in kHz, as KVM takes it.
    pub host_tsc_khz: u32,
}

impl VcpuPlan {
    /// Asks a fresh vCPU after [`prepare`], which told `host_tsc_khz`.
    pub fn probe(
        vm: &VmFd,
        vcpu: &VcpuFd,
        host: &HostCaps,
        platform: &Platform,
        host_tsc_khz: u32,
    ) -> Result<Self, VcpuStateError> {
        let msrs = MsrPlan::probe(vcpu, host, &platform.caps).map_err(ioctl(0, "KVM_GET_MSRS"))?;
        Ok(Self {
            msrs,
            xsave: XsaveSize::of(vm),
            nested: host.nested_state_size,
            tsc_offset: ioctls::has_tsc_offset(vcpu),
            shadow_stack: vcpu.get_one_reg(SSP, &mut [0; 8]).is_ok(),
            tsc_khz: vcpu.get_tsc_khz().map_err(ioctl(0, "KVM_GET_TSC_KHZ"))?,
            host_tsc_khz,
        })
    }

    /// Whether the TSC offset can be read and written.
    pub fn has_tsc_offset(&self) -> bool {
        self.tsc_offset
    }
}

/// Checks that a vCPU's TSC counts. Takes about 2 ms: not for the downtime.
pub fn tsc_advances(index: u32, vcpu: &VcpuFd, plan: &VcpuPlan) -> Result<(), VcpuStateError> {
    let read =
        || msr::read_one(vcpu, msr::IA32_TSC).map_err(|source| VcpuStateError::Msr { vcpu: index, source });
    let (guest, host) = (read()?, host_tsc());
    std::thread::sleep(TSC_WATCH);
    // The host's readings lie within the guest's: however long this thread is kept from running, the guest's count is
    // due to have advanced by at least as much. A stopped TSC is off by all of it.
    let host = host_tsc().wrapping_sub(host);
    let advanced = read()?.wrapping_sub(guest);
    let due = mul_div(host, u64::from(plan.tsc_khz), u64::from(plan.host_tsc_khz));
    if advanced < due / 2 {
        return Err(VcpuStateError::TscStuck { vcpu: index, advanced, host });
    }
    Ok(())
}
