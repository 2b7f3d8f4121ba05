//! What an assigned device needs, by KVM: memory slots for its BARs, irqfds for its lines, and the kernel's own device for
//! VFIO.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use kvm_bindings::{
    KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD, KVM_DEV_VFIO_FILE_DEL, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_VFIO, kvm_userspace_memory_region,
};
use kvm_ioctls::{DeviceFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::msi::{MsiRoutes, VectorSource};
use crate::devices::vfio::{Files, Levels, Slots, Tell, VfioWires};

/// The first slot that is a BAR's: RAM and ROM have those below.
const FIRST_SLOT: u32 = 64;
/// The last.
const LAST_SLOT: u32 = 511;

/// What assigned devices need of a machine.
pub(super) fn wires(vm: &Arc<VmFd>, msi: &Arc<MsiRoutes>, tell: Tell) -> VfioWires {
    VfioWires {
        slots: Arc::new(BarSlots { vm: Arc::clone(vm), taken: Mutex::default() }),
        msi: Arc::new(VectorSource(Arc::clone(msi))),
        levels: Arc::new(Irqfds(Arc::clone(vm))),
        files: Arc::new(KvmVfio { vm: Arc::clone(vm), device: OnceLock::new() }),
        tell,
    }
}

/// KVM's slots that are for BARs.
struct BarSlots {
    vm: Arc<VmFd>,
    taken: Mutex<BTreeSet<u32>>,
}

impl BarSlots {
    fn set(&self, slot: u32, guest_phys_addr: u64, userspace_addr: u64, memory_size: u64) -> io::Result<()> {
        let region =
            kvm_userspace_memory_region { slot, flags: 0, guest_phys_addr, memory_size, userspace_addr };
        // SAFETY: a slot of no size shows nothing; whoever asks for another promises that its memory stays.
        Ok(unsafe { self.vm.set_user_memory_region(region) }?)
    }
}

impl Slots for BarSlots {
    unsafe fn show(&self, guest: u64, host: u64, size: u64) -> io::Result<u32> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = (FIRST_SLOT..=LAST_SLOT).find(|slot| !taken.contains(slot));
        let slot = slot.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSPC))?;
        self.set(slot, guest, host, size)?;
        taken.insert(slot);
        Ok(slot)
    }

    fn hide(&self, slot: u32) -> io::Result<()> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        self.set(slot, 0, 0, 0)?;
        taken.remove(&slot);
        Ok(())
    }
}

/// Lines that irqfds drive.
struct Irqfds(Arc<VmFd>);

impl Levels for Irqfds {
    fn attach(&self, gsi: u32, signal: &EventFd, dealt: &EventFd) -> io::Result<()> {
        Ok(self.0.register_irqfd_with_resample(signal, dealt, gsi)?)
    }

    fn detach(&self, gsi: u32, signal: &EventFd) -> io::Result<()> {
        Ok(self.0.unregister_irqfd(signal, gsi)?)
    }
}

/// KVM's device for VFIO (the kernel's Documentation/virt/kvm/devices/vfio.rst), made when it is needed.
struct KvmVfio {
    vm: Arc<VmFd>,
    device: OnceLock<DeviceFd>,
}

impl KvmVfio {
    fn device(&self) -> io::Result<&DeviceFd> {
        if let Some(device) = self.device.get() {
            return Ok(device);
        }
        let mut wanted = kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_VFIO, fd: 0, flags: 0 };
        let made = self.vm.create_device(&mut wanted)?;
        Ok(self.device.get_or_init(|| made))
    }

    fn tell(&self, what: u32, file: BorrowedFd<'_>, no_harm: i32) -> io::Result<()> {
        let fd = file.as_raw_fd();
        let addr = &raw const fd as u64;
        let attr = kvm_device_attr { group: KVM_DEV_VFIO_FILE, attr: what.into(), addr, flags: 0 };
        match self.device()?.set_device_attr(&attr) {
            Err(error) if error.errno() != no_harm => Err(error.into()),
            _ => Ok(()),
        }
    }
}

impl Files for KvmVfio {
    fn add(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        self.tell(KVM_DEV_VFIO_FILE_ADD, file, libc::EEXIST)
    }

    fn remove(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        self.tell(KVM_DEV_VFIO_FILE_DEL, file, libc::ENOENT)
    }
}
