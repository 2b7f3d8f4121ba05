//! The first state of the vCPUs of a cold boot, and after sleep.

use kvm_bindings::{Msrs, kvm_lapic_state, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::{BootEntry, BootError, regs};

const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, and memory write-back where none says otherwise.
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

const APIC_LVT_LINT0: usize = 0x350;
const APIC_LVT_LINT1: usize = 0x360;
const DELIVERY_MODE: u32 = 7 << 8;
const MASKED: u32 = 1 << 16;
const EXTINT: u32 = 7 << 8;
const NMI: u32 = 4 << 8;

/// Gives a vCPU what a kernel expects a firmware to have set: MTRRs, and NMI and the PIC wired to the local APIC.
///
/// For each vCPU, after its CPUID is set. A firmware does this itself, so for it nothing is done.
pub fn setup_vcpu(entry: &BootEntry, vcpu: &VcpuFd) -> Result<(), BootError> {
    if *entry == BootEntry::ResetVector {
        return Ok(());
    }
    setup_msrs(vcpu)?;
    setup_lapic(vcpu)
}

/// Puts the boot vCPU at `entry`. The others wait for it to start them.
pub fn enter_at(entry: &BootEntry, vcpu: &VcpuFd) -> Result<(), BootError> {
    let (long, general) = match *entry {
        // What KVM made is the reset state.
        BootEntry::ResetVector => return Ok(()),
        BootEntry::Linux64 { entry, zero_page } => (true, regs::linux64(entry, zero_page)),
        BootEntry::Pvh { entry, start_info } => (false, regs::pvh(entry, start_info)),
        BootEntry::Waking { vector } => return wake_at(vector, vcpu),
    };
    let mut sregs = vcpu.get_sregs().map_err(kvm("KVM_GET_SREGS for boot"))?;
    regs::special(&mut sregs, long);
    vcpu.set_sregs(&sregs).map_err(kvm("KVM_SET_SREGS for boot"))?;
    vcpu.set_regs(&general).map_err(kvm("KVM_SET_REGS for boot"))?;
    vcpu.set_fpu(&regs::fpu()).map_err(kvm("KVM_SET_FPU for boot"))
}

/// Real mode, with the vector's paragraph as the code segment (ACPI 6.5, 16.3.1); all else is as reset has left it.
fn wake_at(vector: u32, vcpu: &VcpuFd) -> Result<(), BootError> {
    let mut sregs = vcpu.get_sregs().map_err(kvm("KVM_GET_SREGS for waking"))?;
    (sregs.cs.selector, sregs.cs.base) = ((vector >> 4) as u16, (vector & !0xf).into());
    vcpu.set_sregs(&sregs).map_err(kvm("KVM_SET_SREGS for waking"))?;
    let mut regs = vcpu.get_regs().map_err(kvm("KVM_GET_REGS for waking"))?;
    regs.rip = (vector & 0xf).into();
    vcpu.set_regs(&regs).map_err(kvm("KVM_SET_REGS for waking"))
}

fn setup_msrs(vcpu: &VcpuFd) -> Result<(), BootError> {
    for (index, value) in
        [(MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING), (MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK)]
    {
        let entry = kvm_msr_entry { index, data: value, ..Default::default() };
        let msrs = Msrs::from_entries(&[entry]).map_err(|_| BootError::Msr { index })?;
        if vcpu.set_msrs(&msrs).map_err(kvm("KVM_SET_MSRS for boot"))? != 1 {
            return Err(BootError::Msr { index });
        }
    }
    Ok(())
}

fn setup_lapic(vcpu: &VcpuFd) -> Result<(), BootError> {
    let mut lapic = vcpu.get_lapic().map_err(kvm("KVM_GET_LAPIC for boot"))?;
    set_delivery(&mut lapic, APIC_LVT_LINT0, EXTINT);
    set_delivery(&mut lapic, APIC_LVT_LINT1, NMI);
    vcpu.set_lapic(&lapic).map_err(kvm("KVM_SET_LAPIC for boot"))
}

/// Sets the delivery mode of the local vector at `offset`, and unmasks it.
fn set_delivery(lapic: &mut kvm_lapic_state, offset: usize, mode: u32) {
    let register = &mut lapic.regs[offset..offset + 4];
    let old = register.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte as u8));
    let new = old & !(DELIVERY_MODE | MASKED) | mode;
    for (byte, value) in register.iter_mut().zip(new.to_le_bytes()) {
        *byte = value as _;
    }
}

fn kvm(doing: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> BootError {
    move |source| BootError::Kvm { doing, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delivery_mode_changes_and_the_vector_stays() {
        let mut lapic = kvm_lapic_state::default();
        for (at, byte) in [0x30, 0, 1, 0].into_iter().enumerate() {
            lapic.regs[APIC_LVT_LINT0 + at] = byte;
        }
        set_delivery(&mut lapic, APIC_LVT_LINT0, EXTINT);
        assert_eq!(lapic.regs[APIC_LVT_LINT0..APIC_LVT_LINT0 + 4], [0x30, 7, 0, 0]);
    }
}
