//! Writes a vCPU's state, in the order that KVM's dependencies ask for.
//!
//! 1. Segments with the APIC base and EFER come first: LAPIC, MSRs and nested state are checked against them.
//! 2. The TSC comes before the LAPIC, and the TSC deadline after both: it is dropped unless the timer is in that mode.
//! 3. General registers come before the events: writing them drops an exception that is pending.
//! 4. What a host does not take is an error that names the vCPU, the ioctl and the register. Nothing is left out.
//! 5. [`after_clock`] is for when the VM's clock is set.
//! 6. [`reset`] does the same with a vCPU that has run. Its TSC goes on, as does what KVM does by it.

use kvm_bindings::kvm_mp_state;
use kvm_ioctls::VcpuFd;

use super::ioctls::{self, NESTED_HEADER};
use super::plan::{SSP, VcpuPlan};
use super::state::{Msr, Tsc, VcpuState, VcpuStateError, ioctl};
use crate::x86::clock::Resumption;
use crate::x86::msr::{self, IA32_TSC, IA32_TSC_DEADLINE, KVM_WALL_CLOCK};

/// Loads a fresh vCPU (after [`super::plan::prepare`]) that has not run.
///
/// `clock` is how the guest's time goes on. Where KVM does not take a TSC offset, load vCPU 0 before the others.
pub fn load(
    index: u32,
    vcpu: &VcpuFd,
    state: &VcpuState,
    plan: &VcpuPlan,
    clock: &Resumption,
) -> Result<(), VcpuStateError> {
    write(index, vcpu, state, plan, Some(clock))
}

/// Gives a parked vCPU, whatever it was at, the state that it was made with (`fresh`), but for its TSC.
pub fn reset(index: u32, vcpu: &VcpuFd, fresh: &VcpuState, plan: &VcpuPlan) -> Result<(), VcpuStateError> {
    // Whatever INIT or SIPI was on its way is taken note of, and overwritten.
    vcpu.get_mp_state().map_err(ioctl(index, "KVM_GET_MP_STATE"))?;
    // It leaves a guest of its own before what it would come back to is changed.
    if let Some(nested) = &fresh.nested {
        load_nested(index, vcpu, nested, plan)?;
    }
    write(index, vcpu, fresh, plan, None)
}

/// Writes all of a state: to a fresh vCPU with the clock that its TSC goes by, or to one that has run.
fn write(
    index: u32,
    vcpu: &VcpuFd,
    state: &VcpuState,
    plan: &VcpuPlan,
    clock: Option<&Resumption>,
) -> Result<(), VcpuStateError> {
    let msr_error = |source| VcpuStateError::Msr { vcpu: index, source };
    let size_error = |source| VcpuStateError::Format { vcpu: index, source };
    let regs = state.regs.get().map_err(size_error)?;
    let sregs = state.sregs.get().map_err(size_error)?;
    let events = state.events.get().map_err(size_error)?;
    let xcrs = state.xcrs.get().map_err(size_error)?;
    let debugregs = state.debugregs.get().map_err(size_error)?;
    let lapic = state.lapic.get().map_err(size_error)?;
    let xsave = fit_xsave(index, &state.xsave, plan)?;

    ioctls::set_sregs2(vcpu, sregs).map_err(ioctl(index, "KVM_SET_SREGS2"))?;
    let late = |msr: &Msr| matches!(msr.index, IA32_TSC | IA32_TSC_DEADLINE | KVM_WALL_CLOCK);
    let early = |msr: &&Msr| !late(msr) && (clock.is_none() || !plan.msrs.is_fresh(msr));
    msr::write(vcpu, state.msrs.iter().filter(early)).map_err(msr_error)?;
    if let Some(clock) = clock {
        load_tsc(index, vcpu, state.tsc, plan, clock)?;
    }
    vcpu.set_xcrs(xcrs).map_err(ioctl(index, "KVM_SET_XCRS"))?;
    ioctls::set_xsave(vcpu, plan.xsave, &xsave).map_err(ioctl(index, "KVM_SET_XSAVE"))?;
    vcpu.set_lapic(lapic).map_err(ioctl(index, "KVM_SET_LAPIC"))?;
    let deadline = |msr: &&Msr| msr.index == IA32_TSC_DEADLINE && msr.value != 0;
    msr::write(vcpu, state.msrs.iter().filter(deadline)).map_err(msr_error)?;
    vcpu.set_regs(regs).map_err(ioctl(index, "KVM_SET_REGS"))?;
    vcpu.set_vcpu_events(events).map_err(ioctl(index, "KVM_SET_VCPU_EVENTS"))?;
    vcpu.set_mp_state(kvm_mp_state { mp_state: state.mp_state }).map_err(ioctl(index, "KVM_SET_MP_STATE"))?;
    vcpu.set_debug_regs(debugregs).map_err(ioctl(index, "KVM_SET_DEBUGREGS"))?;
    if let Some(ssp) = state.shadow_stack {
        load_shadow_stack(index, vcpu, ssp, plan)?;
    }
    match &state.nested {
        Some(nested) => load_nested(index, vcpu, nested, plan),
        None => Ok(()),
    }
}

/// When the VM's clock is set: the guest's wall clock page is written for the clock that now holds.
pub fn after_clock(index: u32, vcpu: &VcpuFd, state: &VcpuState) -> Result<(), VcpuStateError> {
    // The wall clock is the VM's, and every vCPU's register tells the same.
    let wall_clock = |msr: &&Msr| index == 0 && msr.index == KVM_WALL_CLOCK && msr.value != 0;
    msr::write(vcpu, state.msrs.iter().filter(wall_clock))
        .map_err(|source| VcpuStateError::Msr { vcpu: index, source })
}

/// The XSAVE area in this host's size. What is cut off must hold nothing.
fn fit_xsave(index: u32, saved: &[u8], plan: &VcpuPlan) -> Result<Vec<u8>, VcpuStateError> {
    let len = plan.xsave.bytes();
    if saved.len() < ioctls::XSAVE_MIN || saved.iter().skip(len).any(|b| *b != 0) {
        return Err(VcpuStateError::Unfit {
            vcpu: index,
            part: "the XSAVE area",
            found: format!("{} bytes", saved.len()),
            expected: format!("{} to {len}, and nothing but zeros after that", ioctls::XSAVE_MIN),
        });
    }
    let mut area = vec![0; len];
    let common = len.min(saved.len());
    area[..common].copy_from_slice(&saved[..common]);
    Ok(area)
}

fn load_tsc(
    index: u32,
    vcpu: &VcpuFd,
    tsc: Tsc,
    plan: &VcpuPlan,
    clock: &Resumption,
) -> Result<(), VcpuStateError> {
    if let (Tsc::Offset(offset), true) = (tsc, plan.tsc_offset) {
        return ioctls::set_tsc_offset(vcpu, clock.tsc_offset(offset))
            .map_err(ioctl(index, "KVM_SET_DEVICE_ATTR TSC_OFFSET"));
    }
    // KVM takes a value within a second of what it expects for "the same as the vCPU before", and gives it that one's
    // offset. That keeps the vCPUs together, but the first must be taken as it is: so a value far away goes before it.
    let write = |value| {
        msr::write(vcpu, [&Msr { index: IA32_TSC, value }].into_iter())
            .map_err(|source| VcpuStateError::Msr { vcpu: index, source })
    };
    if index == 0 {
        write(clock.guest_tsc_now(tsc).wrapping_add(1 << 62))?;
    }
    write(clock.guest_tsc_now(tsc))
}

fn load_shadow_stack(index: u32, vcpu: &VcpuFd, ssp: u64, plan: &VcpuPlan) -> Result<(), VcpuStateError> {
    if plan.shadow_stack {
        return vcpu
            .set_one_reg(SSP, &ssp.to_ne_bytes())
            .map(drop)
            .map_err(ioctl(index, "KVM_SET_ONE_REG GUEST_SSP"));
    }
    if ssp == 0 {
        return Ok(());
    }
    Err(VcpuStateError::Unfit {
        vcpu: index,
        part: "the shadow stack pointer",
        found: format!("{ssp:#x}"),
        expected: "none: KVM here has no KVM_REG_GUEST_SSP".into(),
    })
}

fn load_nested(index: u32, vcpu: &VcpuFd, nested: &[u8], plan: &VcpuPlan) -> Result<(), VcpuStateError> {
    if plan.nested > 0 && nested.len() <= plan.nested {
        return ioctls::set_nested_state(vcpu, nested).map_err(ioctl(index, "KVM_SET_NESTED_STATE"));
    }
    // Without a guest of its own, a guest loses nothing where KVM cannot nest.
    if plan.nested == 0 && nested.len() == NESTED_HEADER {
        return Ok(());
    }
    Err(VcpuStateError::Unfit {
        vcpu: index,
        part: "the nested state",
        found: format!("{} bytes", nested.len()),
        expected: format!("at most {}", plan.nested),
    })
}
