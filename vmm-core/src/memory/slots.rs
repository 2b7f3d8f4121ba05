//! KVM's memory slots.

use std::io;
use std::ops::Range;

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;

use super::{GuestRam, MemoryError};
use crate::config::ByteSize;

/// Where a ROM ends.
const FOUR_GIB: u64 = 4 << 30;
/// Where the copy of a ROM's last part ends that real mode can reach.
const ONE_MIB: u64 = 1 << 20;
/// The most of a ROM that shows there.
const ROM_ALIAS: u64 = 128 << 10;

/// Memory that the guest reaches without an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemorySlot {
    /// Where it starts in the guest.
    pub guest_addr: u64,
    /// Bytes.
    pub size: u64,
    /// Where it starts in this process.
    pub host_addr: u64,
    /// Whether the guest's writes exit instead.
    pub readonly: bool,
}

/// Gives a VM all of a guest's memory. Slots are numbered from 0.
///
/// # Safety
///
/// `ram` must stay mapped as long as the VM can run: the guest reads and writes through these addresses.
pub unsafe fn set_slots(vm: &VmFd, ram: &GuestRam) -> Result<(), MemoryError> {
    for (slot, memory) in (0..).zip(ram.slots()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: if memory.readonly { KVM_MEM_READONLY } else { 0 },
            guest_phys_addr: memory.guest_addr,
            memory_size: memory.size,
            userspace_addr: memory.host_addr,
        };
        // SAFETY: the range is a mapping of `ram`, which the caller keeps as long as the VM.
        unsafe { vm.set_user_memory_region(region) }.map_err(|e| MemoryError::Slot {
            slot,
            guest_addr: memory.guest_addr,
            size: ByteSize(memory.size),
            source: io::Error::from_raw_os_error(e.errno()),
        })?;
    }
    Ok(())
}

/// The slots of a ROM that is mapped at `host_addr`: all of it below 4 GiB, its end below 1 MiB.
pub(super) fn rom(host_addr: u64, size: u64) -> [MemorySlot; 2] {
    let alias = size.min(ROM_ALIAS);
    let slot = |end: u64, len: u64| MemorySlot {
        guest_addr: end - len,
        size: len,
        host_addr: host_addr + size - len,
        readonly: true,
    };
    [slot(FOUR_GIB, size), slot(ONE_MIB, alias)]
}

/// What remains of `slot` where the guest addresses in `hidden` show something else.
pub(super) fn without(slot: MemorySlot, hidden: &[Range<u64>]) -> Vec<MemorySlot> {
    let mut parts = vec![slot];
    for hole in hidden {
        parts = parts.into_iter().flat_map(|part| cut(part, hole)).collect();
    }
    parts
}

fn cut(slot: MemorySlot, hole: &Range<u64>) -> impl Iterator<Item = MemorySlot> {
    let (start, end) = (slot.guest_addr, slot.guest_addr + slot.size);
    let below = start..hole.start.clamp(start, end);
    let above = hole.end.clamp(start, end)..end;
    [below, above].into_iter().filter(|part| !part.is_empty()).map(move |part| MemorySlot {
        guest_addr: part.start,
        size: part.end - part.start,
        host_addr: slot.host_addr + (part.start - start),
        ..slot
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAM: MemorySlot =
        MemorySlot { guest_addr: 0x1000, size: 0x4000, host_addr: 0x10_0000, readonly: false };

    #[test]
    fn a_hole_in_the_middle_leaves_both_ends_where_they_were() {
        let parts = without(RAM, std::slice::from_ref(&(0x2000..0x3000)));
        let seen: Vec<_> = parts.iter().map(|p| (p.guest_addr, p.size, p.host_addr)).collect();
        assert_eq!(seen, [(0x1000, 0x1000, 0x10_0000), (0x3000, 0x2000, 0x10_2000)]);
    }

    #[test]
    fn a_hole_elsewhere_changes_nothing() {
        for hole in [0..0x1000, 0x5000..0x6000] {
            assert_eq!(without(RAM, &[hole]), [RAM]);
        }
    }

    #[test]
    fn a_hole_over_everything_leaves_nothing() {
        assert!(without(RAM, std::slice::from_ref(&(0..0x9000))).is_empty());
    }
}
