//! The kick that ends a halt of a vCPU whose guest knows that it is one (`KVM_FEATURE_PV_UNHALT`).
//!
//! Such a guest waits for a spin lock by looking at it once more and then halting, with interrupts off; whoever frees the
//! lock kicks it by hypercall (`KVM_HC_KICK_CPU`). A kick that comes between the look and the halt is kept in KVM and ends the
//! halt at once. `KVM_GET_MP_STATE` shows one that a halted vCPU was given, but nothing shows one that is kept for a vCPU
//! that has not halted yet: were it lost with the handover, the vCPU would halt for good. So a vCPU that may be about to
//! wait is kicked once after its load. Guests are made for kicks without a reason: they look again.

use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_msi};
use kvm_ioctls::VmFd;
use vmm_sys_util::errno;

use super::state::{VcpuState, VcpuStateError, ioctl};
use crate::x86::cpuid::CpuidEntry;

/// KVM's features, in EAX (`Documentation/virt/kvm/x86/cpuid.rst`).
const KVM_CPUID_FEATURES: u32 = 0x4000_0001;
/// The feature's bit there.
const KVM_FEATURE_PV_UNHALT: u32 = 7;
/// Where messages to LAPICs go; the receiver's id is from bit 12 on.
const MSI_ADDRESS: u32 = 0xfee0_0000;
/// The delivery mode "remote read", which no LAPIC has had for long: KVM takes it as the kick.
const DELIVER_KICK: u32 = 3 << 8;
/// Interrupts are on.
const RFLAGS_IF: u64 = 1 << 9;

/// Kicks a loaded vCPU if its state does not tell whether it was kicked. After its LAPIC was loaded.
pub fn unhalt(index: u32, vm: &VmFd, state: &VcpuState, shown: &[CpuidEntry]) -> Result<(), VcpuStateError> {
    if knows_kicks(shown) && may_be_about_to_halt(index, state)? {
        kick(vm, index).map_err(ioctl(index, "KVM_SIGNAL_MSI"))?;
    }
    Ok(())
}

fn knows_kicks(shown: &[CpuidEntry]) -> bool {
    shown
        .iter()
        .any(|entry| entry.function == KVM_CPUID_FEATURES && entry.eax >> KVM_FEATURE_PV_UNHALT & 1 != 0)
}

/// Who waits has turned interrupts off, or on again by the instruction before its halt.
fn may_be_about_to_halt(index: u32, state: &VcpuState) -> Result<bool, VcpuStateError> {
    let size_error = |source| VcpuStateError::Format { vcpu: index, source };
    let masked = state.regs.get().map_err(size_error)?.rflags & RFLAGS_IF == 0;
    let shadow = state.events.get().map_err(size_error)?.interrupt.shadow != 0;
    Ok(state.mp_state == KVM_MP_STATE_RUNNABLE && (masked || shadow))
}

/// Ends the present or the next halt of the vCPU with this LAPIC id.
pub fn kick(vm: &VmFd, apic_id: u32) -> Result<(), errno::Error> {
    let msi = kvm_msi { address_lo: MSI_ADDRESS | apic_id << 12, data: DELIVER_KICK, ..Default::default() };
    // A vCPU that does not take it now has not been started: it does not wait for anybody.
    vm.signal_msi(msi).map(drop)
}
