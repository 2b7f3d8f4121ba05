//! The vCPU ioctls that `kvm-ioctls` lacks, or has only in an unsafe or fixed-size form.
//!
//! Each wrapper is safe: a buffer that the kernel fills or reads by a length of its own is checked against that length
//! first. See the kernel's `Documentation/virt/kvm/api.rst`.

use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr, kvm_dtable, kvm_nested_state,
    kvm_segment, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vmm_sys_util::errno::Error;
use vmm_sys_util::ioctl::{ioctl_with_mut_ptr, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The ioctls' numbers.
mod nr {
    use super::{KVMIO, Sregs2, kvm_device_attr, kvm_nested_state, kvm_xsave};
    use vmm_sys_util::{ioctl_ior_nr, ioctl_iow_nr, ioctl_iowr_nr};

    ioctl_iow_nr!(KVM_X86_SETUP_MCE, KVMIO, 0x9c, u64);
    ioctl_ior_nr!(KVM_X86_GET_MCE_CAP_SUPPORTED, KVMIO, 0x9d, u64);
    ioctl_ior_nr!(KVM_GET_XSAVE, KVMIO, 0xa4, kvm_xsave);
    ioctl_iow_nr!(KVM_SET_XSAVE, KVMIO, 0xa5, kvm_xsave);
    ioctl_iowr_nr!(KVM_GET_NESTED_STATE, KVMIO, 0xbe, kvm_nested_state);
    ioctl_iow_nr!(KVM_SET_NESTED_STATE, KVMIO, 0xbf, kvm_nested_state);
    ioctl_ior_nr!(KVM_GET_SREGS2, KVMIO, 0xcc, Sregs2);
    ioctl_iow_nr!(KVM_SET_SREGS2, KVMIO, 0xcd, Sregs2);
    ioctl_ior_nr!(KVM_GET_XSAVE2, KVMIO, 0xcf, kvm_xsave);
    ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
    ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);
    ioctl_iow_nr!(KVM_HAS_DEVICE_ATTR, KVMIO, 0xe3, kvm_device_attr);
}

/// Bytes of the XSAVE area that `KVM_GET_XSAVE` and `KVM_SET_XSAVE` always touch (`struct kvm_xsave`).
pub const XSAVE_MIN: usize = 4096;

/// Bytes of a nested state's header; the state follows it.
pub const NESTED_HEADER: usize = 128;

/// `struct kvm_sregs2`, in a form whose bytes may be read and written as such.
#[derive(Debug, Default, Clone, Copy, PartialEq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
#[expect(missing_docs, reason = "the kernel's names")]
pub struct Sregs2 {
    pub cs: kvm_segment,
    pub ds: kvm_segment,
    pub es: kvm_segment,
    pub fs: kvm_segment,
    pub gs: kvm_segment,
    pub ss: kvm_segment,
    pub tr: kvm_segment,
    pub ldt: kvm_segment,
    pub gdt: kvm_dtable,
    pub idt: kvm_dtable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub apic_base: u64,
    pub flags: u64,
    pub pdptrs: [u64; 4],
}

fn check(ret: i32) -> Result<(), Error> {
    if ret < 0 { Err(Error::last()) } else { Ok(()) }
}

/// `KVM_GET_SREGS2`.
pub fn get_sregs2(vcpu: &VcpuFd) -> Result<Sregs2, Error> {
    let mut sregs = Sregs2::default();
    // SAFETY: the kernel writes one struct kvm_sregs2, whose layout Sregs2 has; any bytes are valid in it.
    check(unsafe { ioctl_with_mut_ref(vcpu, nr::KVM_GET_SREGS2(), &mut sregs) })?;
    Ok(sregs)
}

/// `KVM_SET_SREGS2`.
pub fn set_sregs2(vcpu: &VcpuFd, sregs: &Sregs2) -> Result<(), Error> {
    // SAFETY: the kernel reads one struct kvm_sregs2, whose layout Sregs2 has.
    check(unsafe { ioctl_with_ref(vcpu, nr::KVM_SET_SREGS2(), sregs) })
}

/// The size of the XSAVE areas that KVM reads and writes for the vCPUs of a VM: what KVM tells for this process, so that
/// a buffer checked against it is never overrun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XsaveSize(usize);

impl XsaveSize {
    /// Asks KVM (`KVM_CAP_XSAVE2`, 0 before Linux 5.17).
    pub fn of(vm: &VmFd) -> Self {
        Self(vm.check_extension_int(Cap::Xsave2).max(0) as usize)
    }

    /// Bytes of an area.
    pub fn bytes(self) -> usize {
        self.0.max(XSAVE_MIN)
    }
}

/// Reads the XSAVE area into `area`, of the size of the vCPU's VM.
pub fn get_xsave(vcpu: &VcpuFd, size: XsaveSize, area: &mut [u8]) -> Result<(), Error> {
    if area.len() < size.bytes() {
        return Err(Error::new(libc::EINVAL));
    }
    let request = if size.0 == 0 { nr::KVM_GET_XSAVE() } else { nr::KVM_GET_XSAVE2() };
    // SAFETY: the kernel writes the XSAVE size of the VM for XSAVE2, 4096 bytes for XSAVE; `area` has that many.
    check(unsafe { ioctl_with_mut_ptr(vcpu, request, area.as_mut_ptr()) })
}

/// Writes the XSAVE area; sizes as for [`get_xsave`].
pub fn set_xsave(vcpu: &VcpuFd, size: XsaveSize, area: &[u8]) -> Result<(), Error> {
    if area.len() < size.bytes() {
        return Err(Error::new(libc::EINVAL));
    }
    // SAFETY: the kernel reads the XSAVE size of the VM, or 4096 bytes if that is less; `area` has that many.
    check(unsafe { ioctl_with_ptr(vcpu, nr::KVM_SET_XSAVE(), area.as_ptr()) })
}

/// The size that a nested state says it has, in its header (bytes 4 to 8).
fn nested_len(state: &[u8]) -> Option<usize> {
    let size: [u8; 4] = state.get(4..8)?.try_into().ok()?;
    Some(u32::from_ne_bytes(size) as usize)
}

/// Reads the nested state into `buffer` (at least as long as `KVM_CAP_NESTED_STATE` tells) and returns its length.
pub fn get_nested_state(vcpu: &VcpuFd, buffer: &mut [u8]) -> Result<usize, Error> {
    if buffer.len() < NESTED_HEADER {
        return Err(Error::new(libc::EINVAL));
    }
    let len = u32::try_from(buffer.len()).map_err(|_| Error::new(libc::E2BIG))?;
    buffer[..8].fill(0);
    buffer[4..8].copy_from_slice(&len.to_ne_bytes());
    // SAFETY: the kernel writes at most as many bytes as the size field says, which is the buffer's length.
    check(unsafe { ioctl_with_mut_ptr(vcpu, nr::KVM_GET_NESTED_STATE(), buffer.as_mut_ptr()) })?;
    nested_len(buffer)
        .filter(|len| (NESTED_HEADER..=buffer.len()).contains(len))
        .ok_or(Error::new(libc::EPROTO))
}

/// Writes a nested state whose size field must be its length.
pub fn set_nested_state(vcpu: &VcpuFd, state: &[u8]) -> Result<(), Error> {
    if state.len() < NESTED_HEADER || nested_len(state) != Some(state.len()) {
        return Err(Error::new(libc::EINVAL));
    }
    // SAFETY: the kernel reads the header, then at most as many bytes as its size field says: the slice's length.
    check(unsafe { ioctl_with_ptr(vcpu, nr::KVM_SET_NESTED_STATE(), state.as_ptr()) })
}

fn tsc_offset_attr(addr: u64) -> kvm_device_attr {
    kvm_device_attr { flags: 0, group: KVM_VCPU_TSC_CTRL, attr: u64::from(KVM_VCPU_TSC_OFFSET), addr }
}

/// Whether this vCPU's TSC offset can be read and written (Linux 5.16).
pub fn has_tsc_offset(vcpu: &VcpuFd) -> bool {
    // SAFETY: the kernel reads one struct kvm_device_attr.
    unsafe { ioctl_with_ref(vcpu, nr::KVM_HAS_DEVICE_ATTR(), &tsc_offset_attr(0)) == 0 }
}

/// What is added to the (scaled) host TSC to give the guest's.
pub fn get_tsc_offset(vcpu: &VcpuFd) -> Result<u64, Error> {
    let mut offset = 0u64;
    let attr = tsc_offset_attr(&raw mut offset as u64);
    // SAFETY: the kernel reads one struct kvm_device_attr, and writes one u64 where it points: `offset` lives on.
    check(unsafe { ioctl_with_ref(vcpu, nr::KVM_GET_DEVICE_ATTR(), &attr) })?;
    Ok(offset)
}

/// Sets what is added to the (scaled) host TSC to give the guest's.
pub fn set_tsc_offset(vcpu: &VcpuFd, offset: u64) -> Result<(), Error> {
    let attr = tsc_offset_attr(&raw const offset as u64);
    // SAFETY: the kernel reads one struct kvm_device_attr and one u64 where it points: `offset` lives on.
    check(unsafe { ioctl_with_ref(vcpu, nr::KVM_SET_DEVICE_ATTR(), &attr) })
}

/// The machine check capabilities (`IA32_MCG_CAP`) that this host can give a vCPU.
pub fn supported_mce_cap(kvm: &Kvm) -> Result<u64, Error> {
    let mut cap = 0u64;
    // SAFETY: the kernel writes one u64.
    check(unsafe { ioctl_with_mut_ref(kvm, nr::KVM_X86_GET_MCE_CAP_SUPPORTED(), &mut cap) })?;
    Ok(cap)
}

/// Gives a vCPU its machine check banks. Resets them.
pub fn setup_mce(vcpu: &VcpuFd, mcg_cap: u64) -> Result<(), Error> {
    // SAFETY: the kernel reads one u64.
    check(unsafe { ioctl_with_ref(vcpu, nr::KVM_X86_SETUP_MCE(), &mcg_cap) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<Sregs2>(), size_of::<kvm_bindings::kvm_sregs2>());
        assert_eq!(size_of::<kvm_xsave>(), XSAVE_MIN);
        assert_eq!(size_of::<kvm_nested_state>(), NESTED_HEADER);
    }
}
