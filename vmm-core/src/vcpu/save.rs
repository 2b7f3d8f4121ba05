//! Reads a stopped vCPU's state, in the order that KVM's side effects ask for.
//!
//! 1. `KVM_GET_MP_STATE` first, for all vCPUs ([`VcpuSaver::save_mp_state`]): it accepts a pending INIT or SIPI, which
//!    resets registers, segments, FPU and events. So what is read after it is what will be.
//! 2. Then everything else ([`VcpuSaver::save`]), which each vCPU's own thread can do: 9 to 11 ioctls.
//! 3. Buffers and register lists are made before the guest stops.

use std::sync::Arc;

use kvm_bindings::Msrs;
use kvm_ioctls::VcpuFd;

use super::ioctls;
use super::plan::{SSP, VcpuPlan};
use super::state::{Tsc, VcpuState, VcpuStateError, ioctl};
use crate::cpr::format::KernelBytes;
use crate::x86::clock::host_tsc;
use crate::x86::msr;

/// Saves one vCPU; made while the guest runs.
#[derive(Debug)]
pub struct VcpuSaver {
    index: u32,
    plan: Arc<VcpuPlan>,
    msrs: Vec<Msrs>,
    xsave: Vec<u8>,
    nested: Vec<u8>,
}

/// Proof that a vCPU's MP state was read, without which the rest must not be.
#[derive(Debug, Clone, Copy)]
pub struct SavedMpState(u32);

impl VcpuSaver {
    /// Makes room for the state of the vCPU with this index.
    pub fn new(index: u32, plan: Arc<VcpuPlan>) -> Self {
        let msrs = plan.msrs.buffers();
        let (xsave, nested) = (vec![0; plan.xsave.bytes()], vec![0; plan.nested]);
        Self { index, plan, msrs, xsave, nested }
    }

    /// Reads the MP state. Do this for all vCPUs, stopped and with no exit half done, before [`Self::save`] for any.
    pub fn save_mp_state(&self, vcpu: &VcpuFd) -> Result<SavedMpState, VcpuStateError> {
        vcpu.get_mp_state()
            .map(|state| SavedMpState(state.mp_state))
            .map_err(ioctl(self.index, "KVM_GET_MP_STATE"))
    }

    /// Reads the rest. The vCPU is left as it was: it can go on running.
    pub fn save(&mut self, vcpu: &VcpuFd, mp_state: SavedMpState) -> Result<VcpuState, VcpuStateError> {
        let index = self.index;
        let events = vcpu.get_vcpu_events().map_err(ioctl(index, "KVM_GET_VCPU_EVENTS"))?;
        let regs = vcpu.get_regs().map_err(ioctl(index, "KVM_GET_REGS"))?;
        ioctls::get_xsave(vcpu, self.plan.xsave, &mut self.xsave).map_err(ioctl(index, "KVM_GET_XSAVE2"))?;
        let xcrs = vcpu.get_xcrs().map_err(ioctl(index, "KVM_GET_XCRS"))?;
        let sregs = ioctls::get_sregs2(vcpu).map_err(ioctl(index, "KVM_GET_SREGS2"))?;
        let nested = if self.nested.is_empty() {
            None
        } else {
            let len = ioctls::get_nested_state(vcpu, &mut self.nested)
                .map_err(ioctl(index, "KVM_GET_NESTED_STATE"))?;
            Some(self.nested[..len].to_vec())
        };
        let msrs =
            msr::read(vcpu, &mut self.msrs).map_err(|source| VcpuStateError::Msr { vcpu: index, source })?;
        // Writes posted interrupts into the IRR, so nothing may be injecting any more.
        let lapic = vcpu.get_lapic().map_err(ioctl(index, "KVM_GET_LAPIC"))?;
        let debugregs = vcpu.get_debug_regs().map_err(ioctl(index, "KVM_GET_DEBUGREGS"))?;
        Ok(VcpuState {
            regs: KernelBytes::new(regs),
            sregs: KernelBytes::new(sregs),
            events: KernelBytes::new(events),
            mp_state: mp_state.0,
            xsave: self.xsave.clone(),
            xcrs: KernelBytes::new(xcrs),
            debugregs: KernelBytes::new(debugregs),
            lapic: KernelBytes::new(lapic),
            msrs,
            nested,
            shadow_stack: self.shadow_stack(vcpu)?,
            tsc: self.tsc(vcpu)?,
        })
    }

    fn shadow_stack(&self, vcpu: &VcpuFd) -> Result<Option<u64>, VcpuStateError> {
        if !self.plan.shadow_stack {
            return Ok(None);
        }
        let mut ssp = [0; 8];
        vcpu.get_one_reg(SSP, &mut ssp).map_err(ioctl(self.index, "KVM_GET_ONE_REG GUEST_SSP"))?;
        Ok(Some(u64::from_ne_bytes(ssp)))
    }

    fn tsc(&self, vcpu: &VcpuFd) -> Result<Tsc, VcpuStateError> {
        if self.plan.tsc_offset {
            return ioctls::get_tsc_offset(vcpu)
                .map(Tsc::Offset)
                .map_err(ioctl(self.index, "KVM_GET_DEVICE_ATTR TSC_OFFSET"));
        }
        let before = host_tsc();
        let guest = msr::read_one(vcpu, msr::IA32_TSC)
            .map_err(|source| VcpuStateError::Msr { vcpu: self.index, source })?;
        Ok(Tsc::Counters { guest, host: before + host_tsc().wrapping_sub(before) / 2 })
    }
}
