//! What of a device's BARs the guest reaches without an exit.
//!
//! The MSI-X table is never among it: its pages are left out, whatever the kernel would let be mapped.

use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::handle::{BARS, Handle};
use super::registers::MsixCapability;
use super::wires::Slots;
use crate::devices::DeviceError;

const PAGE: u64 = 4096;
/// Bytes of a table entry.
const ENTRY: u64 = 16;

/// Part of a BAR in this process's memory.
struct Mapping {
    at: NonNull<libc::c_void>,
    length: usize,
}

// SAFETY: it is memory of the device's, which nobody here reads or writes.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(handle: &Handle, offset: u64, length: u64) -> io::Result<Self> {
        let too_long = || io::Error::from_raw_os_error(libc::EINVAL);
        let size = usize::try_from(length).ok().and_then(NonZeroUsize::new).ok_or_else(too_long)?;
        let offset = i64::try_from(offset).map_err(|_| too_long())?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, where the kernel finds room.
        let at = unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED, handle, offset) }?;
        Ok(Self { at, length: size.get() })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it is this one's own, and no slot shows it any more.
        if let Err(error) = unsafe { munmap(self.at, self.length) } {
            tracing::error!("unmapping a BAR: {error}");
        }
    }
}

/// A part of a BAR that is mapped.
struct Window {
    bar: usize,
    /// Where it is in the BAR.
    offset: u64,
    mapping: Mapping,
    /// Where the guest has it.
    slot: Option<u32>,
}

/// All parts that are mapped.
pub(super) struct Windows {
    id: String,
    slots: Arc<dyn Slots>,
    all: Vec<Window>,
}

impl Windows {
    /// Maps what can be. The guest sees none of it yet.
    pub(super) fn new(
        handle: &Handle,
        msix: Option<&MsixCapability>,
        slots: Arc<dyn Slots>,
    ) -> Result<Self, DeviceError> {
        let mut all = Vec::new();
        for bar in 0..BARS as usize {
            let region = handle.bar(bar);
            let table = msix
                .filter(|msix| msix.table.0 == bar)
                .map(|msix| msix.table.1..msix.table.1 + u64::from(msix.count) * ENTRY);
            for area in region.areas.iter().flat_map(|area| whole_pages(area, table.as_ref())) {
                let length = area.end - area.start;
                let mapping = Mapping::new(handle, region.offset + area.start, length);
                let doing = format!("mapping {length:#x} bytes of its BAR {bar}");
                let mapping = mapping.map_err(DeviceError::io(handle.id(), doing))?;
                all.push(Window { bar, offset: area.start, mapping, slot: None });
            }
        }
        Ok(Self { id: handle.id().to_owned(), slots, all })
    }

    /// A BAR decodes here from now on, or nowhere. What cannot be shown the guest reaches by exits.
    pub(super) fn place(&mut self, bar: usize, at: Option<u64>) {
        for window in self.all.iter_mut().filter(|window| window.bar == bar) {
            if let Some(slot) = window.slot {
                if let Err(error) = self.slots.hide(slot) {
                    tracing::error!("{}: hiding BAR {bar}: {error}", self.id);
                    continue;
                }
                window.slot = None;
            }
            let Some(guest) = at.map(|at| at + window.offset).filter(|guest| guest.is_multiple_of(PAGE))
            else {
                continue;
            };
            let (host, length) = (window.mapping.at.as_ptr() as u64, window.mapping.length as u64);
            // SAFETY: the mapping is there for as long as this is, and hidden before it goes.
            match unsafe { self.slots.show(guest, host, length) } {
                Ok(slot) => window.slot = Some(slot),
                Err(error) => tracing::warn!("{}: showing BAR {bar} at {guest:#x}: {error}", self.id),
            }
        }
    }
}

impl Drop for Windows {
    fn drop(&mut self) {
        (0..BARS as usize).for_each(|bar| self.place(bar, None));
        // What the guest still sees is never unmapped.
        self.all.drain(..).filter(|window| window.slot.is_some()).for_each(std::mem::forget);
    }
}

/// The whole pages of an area but for those that have something of `hidden`.
fn whole_pages(area: &Range<u64>, hidden: Option<&Range<u64>>) -> impl Iterator<Item = Range<u64>> + use<> {
    let area = area.start.next_multiple_of(PAGE)..area.end / PAGE * PAGE;
    let hidden = hidden
        .map_or(area.end..area.end, |hidden| hidden.start / PAGE * PAGE..hidden.end.next_multiple_of(PAGE));
    let before = area.start..hidden.start.clamp(area.start, area.end.max(area.start));
    let after = hidden.end.clamp(area.start, area.end.max(area.start))..area.end;
    [before, after].into_iter().filter(|part| part.start < part.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(area: Range<u64>, hidden: &Range<u64>) -> Vec<(u64, u64)> {
        whole_pages(&area, Some(hidden)).map(|part| (part.start, part.end)).collect()
    }

    #[test]
    fn the_pages_of_the_table_are_left_out() {
        assert_eq!(pages(0..0x4000, &(0x2000..0x2410)), [(0, 0x2000), (0x3000, 0x4000)]);
        assert_eq!(pages(0..0x4000, &(0..0x10)), [(0x1000, 0x4000)]);
        assert_eq!(pages(0..0x4000, &(0x3ff0..0x4000)), [(0, 0x3000)]);
        assert!(pages(0..0x1000, &(0x800..0x810)).is_empty());
        assert_eq!(pages(0x2000..0x4000, &(0..0x10)), [(0x2000, 0x4000)]);
    }

    #[test]
    fn less_than_a_page_is_not_mapped() {
        assert_eq!(whole_pages(&(0..0x800), None).count(), 0);
        let whole: Vec<_> = whole_pages(&(0x100..0x2100), None).map(|part| part.start).collect();
        assert_eq!(whole, [0x1000]);
    }
}
