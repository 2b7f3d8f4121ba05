//! The VM's own state: the two PICs, the I/O APIC and the PIT.
//!
//! Saved after all vCPUs and with nothing injecting any more; loaded after all vCPUs, so that an interrupt that is
//! waiting in the I/O APIC finds the LAPICs as they were.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use vmm_sys_util::errno;

use crate::cpr::format::{FormatError, KernelBytes, Section, SectionKind};

/// Why the VM's state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum VmStateError {
    /// An ioctl failed.
    #[error("{ioctl}: {source}")]
    Ioctl {
        /// The ioctl, and for which chip.
        ioctl: &'static str,
        /// What the kernel answered.
        source: errno::Error,
    },
    /// A kernel structure in the state has another size than here.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The chips are not the three that a VM has.
    #[error("interrupt chip {expected} of the saved state says that it is chip {found}")]
    Chip {
        /// Its place.
        expected: u32,
        /// What it says.
        found: u32,
    },
}

/// The chips in their order, with what reading and writing them is called.
const CHIPS: [(u32, &str, &str); 3] = [
    (KVM_IRQCHIP_PIC_MASTER, "KVM_GET_IRQCHIP first PIC", "KVM_SET_IRQCHIP first PIC"),
    (KVM_IRQCHIP_PIC_SLAVE, "KVM_GET_IRQCHIP second PIC", "KVM_SET_IRQCHIP second PIC"),
    (KVM_IRQCHIP_IOAPIC, "KVM_GET_IRQCHIP I/O APIC", "KVM_SET_IRQCHIP I/O APIC"),
];

/// The VM's state. On the wire.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmState {
    /// First PIC, second PIC, I/O APIC.
    pub chips: [KernelBytes<kvm_irqchip>; 3],
    /// The programmable interval timer.
    pub pit: KernelBytes<kvm_pit_state2>,
}

impl Section for VmState {
    const KIND: SectionKind = SectionKind::Vm;
    const VERSION: u16 = 1;
    const OLDEST: u16 = 1;
}

impl VmState {
    /// Reads the chips and the PIT: 4 ioctls.
    pub fn save(vm: &VmFd) -> Result<Self, VmStateError> {
        let mut chips = CHIPS.map(|(chip_id, ..)| kvm_irqchip { chip_id, ..Default::default() });
        for (chip, (_, ioctl, _)) in chips.iter_mut().zip(CHIPS) {
            vm.get_irqchip(chip).map_err(|source| VmStateError::Ioctl { ioctl, source })?;
        }
        let mut pit =
            vm.get_pit2().map_err(|source| VmStateError::Ioctl { ioctl: "KVM_GET_PIT2", source })?;
        // An instant on this boot's clock, which KVM does not read back: it counts from when the state is set.
        for channel in &mut pit.channels {
            channel.count_load_time = 0;
        }
        Ok(Self { chips: chips.map(KernelBytes::new), pit: KernelBytes::new(pit) })
    }

    /// Writes the chips and the PIT: 4 ioctls.
    pub fn load(&self, vm: &VmFd) -> Result<(), VmStateError> {
        for (chip, (expected, _, ioctl)) in self.chips.iter().zip(CHIPS) {
            let chip = chip.get()?;
            if chip.chip_id != expected {
                return Err(VmStateError::Chip { expected, found: chip.chip_id });
            }
            vm.set_irqchip(chip).map_err(|source| VmStateError::Ioctl { ioctl, source })?;
        }
        vm.set_pit2(self.pit.get()?).map_err(|source| VmStateError::Ioctl { ioctl: "KVM_SET_PIT2", source })
    }
}
