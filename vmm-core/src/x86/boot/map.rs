//! The memory map that a kernel is told, as e820 or in the PVH start info (they share their types).

use crate::x86::layout;

/// RAM.
pub(super) const RAM: u32 = 1;
/// Not to be touched.
pub(super) const RESERVED: u32 = 2;

/// An area of guest physical memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Area {
    pub start: u64,
    pub size: u64,
    pub kind: u32,
}

/// The areas of a guest with `ram_size` bytes of RAM, in order of address.
pub(super) fn areas(ram_size: u64) -> Vec<Area> {
    let area = |start, end, kind| Area { start, size: end - start, kind };
    let low_end = layout::low_ram_end(ram_size);
    let mut areas = vec![
        area(0, layout::EBDA_START, RAM),
        area(layout::EBDA_START, layout::HIGH_RAM_START, RESERVED),
        area(layout::HIGH_RAM_START, low_end, RAM),
        area(layout::PCI_ECAM_START, layout::PCI_ECAM_START + layout::PCI_ECAM_SIZE, RESERVED),
        area(
            layout::KVM_IDENTITY_MAP_START,
            layout::KVM_IDENTITY_MAP_START + layout::KVM_PAGES_SIZE,
            RESERVED,
        ),
    ];
    if ram_size > low_end {
        areas.push(area(layout::HOLE_END, layout::HOLE_END + (ram_size - low_end), RAM));
    }
    areas
}
