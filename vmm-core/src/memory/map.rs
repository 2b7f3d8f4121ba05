//! Guest memory: RAM blocks mapped where the guest sees them.

use std::sync::Arc;

use vm_memory::{
    Address, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    MemoryRegionAddress, MmapRegion,
};

use super::open::PAGE_SIZE;
use super::slots::{self, MemorySlot};
use super::{MemoryError, RamBlock, RamKind};

/// The guest's memory in this process. RAM is mapped shared; nothing is reserved and nothing touched.
#[derive(Debug)]
pub struct GuestRam {
    memory: GuestMemoryMmap,
    rom: Option<Arc<MmapRegion>>,
    pub(super) kind: RamKind,
    pub(super) page_size: u64,
}

impl GuestRam {
    /// Bytes of a page of its backing.
    pub fn page_size(&self) -> u64 {
        self.page_size
    }

    /// Maps `ranges` (guest address, offset in the block, bytes) of the RAM, in rising guest addresses.
    pub fn map(ram: &RamBlock, ranges: &[(GuestAddress, u64, u64)]) -> Result<Self, MemoryError> {
        for (guest, offset, len) in ranges {
            let fits = offset.checked_add(*len).is_some_and(|end| end <= ram.size());
            let whole = (guest.raw_value() | offset | len).is_multiple_of(PAGE_SIZE) && *len != 0;
            if !fits || !whole {
                return Err(MemoryError::Layout {
                    block: ram.name().into(),
                    found: format!("{len:#x} bytes at {offset:#x} for {:#x}", guest.raw_value()),
                    expected: format!("whole pages within {:#x}", ram.size()),
                });
            }
        }
        let files = ranges.iter().map(|(guest, offset, len)| {
            (*guest, *len as usize, Some(FileOffset::from_arc(ram.file().clone(), ram.offset() + offset)))
        });
        let memory = GuestMemoryMmap::from_ranges_with_files(files)
            .map_err(|e| MemoryError::io(ram.name(), "mapping it")(std::io::Error::other(e)))?;
        Ok(Self { memory, rom: None, kind: ram.kind(), page_size: ram.page_size })
    }

    /// Maps a ROM too: it ends at 4 GiB, and its last 128 KiB show below 1 MiB as well, where they hide the RAM.
    pub fn map_rom(&mut self, rom: &RamBlock) -> Result<(), MemoryError> {
        let file = FileOffset::from_arc(rom.file().clone(), 0);
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        let region = MmapRegion::build(Some(file), rom.size() as usize, libc::PROT_READ, flags)
            .map_err(|e| MemoryError::io(rom.name(), "mapping it")(std::io::Error::other(e)))?;
        self.rom = Some(Arc::new(region));
        Ok(())
    }

    /// The RAM, for boot loaders and devices. The ROM is not in it: nothing in the VMM writes there.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// What KVM is told, in slot order.
    pub fn slots(&self) -> impl Iterator<Item = MemorySlot> {
        let mut slots = Vec::new();
        let rom = self.rom.as_ref().map(|rom| slots::rom(rom.as_ptr() as u64, rom.size() as u64));
        let hidden = rom.iter().flatten().map(|slot| slot.guest_addr..slot.guest_addr + slot.size);
        let hidden: Vec<_> = hidden.collect();
        for region in self.memory.iter() {
            // The first byte of a region is always there.
            let host = region.get_host_address(MemoryRegionAddress(0)).map_or(0, |host| host as u64);
            let ram = MemorySlot {
                guest_addr: region.start_addr().raw_value(),
                size: region.len(),
                host_addr: host,
                readonly: false,
            };
            slots.extend(slots::without(ram, &hidden));
        }
        slots.extend(rom.into_iter().flatten());
        slots.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;
    use crate::config::{Backing, ByteSize, MemoryConfig};

    fn ram(size: u64) -> RamBlock {
        RamBlock::create("pc.ram", &MemoryConfig { size: ByteSize(size), backing: Backing::Memfd }).unwrap()
    }

    #[test]
    fn both_ranges_are_windows_on_the_same_block() {
        let block = ram(4 << 20);
        let high = GuestAddress(4 << 30);
        let guest =
            GuestRam::map(&block, &[(GuestAddress(0), 0, 3 << 20), (high, 3 << 20, 1 << 20)]).unwrap();
        guest.memory().write_obj(0x1122_3344_u32, high).unwrap();
        let mut seen = [0; 4];
        std::os::unix::fs::FileExt::read_exact_at(&**block.file(), &mut seen, 3 << 20).unwrap();
        assert_eq!(seen, 0x1122_3344_u32.to_le_bytes());
    }

    #[test]
    fn a_range_past_the_end_of_the_block_is_refused() {
        let block = ram(1 << 20);
        assert!(GuestRam::map(&block, &[(GuestAddress(0), 4096, 1 << 20)]).is_err());
        assert!(GuestRam::map(&block, &[(GuestAddress(0), u64::MAX - 4095, 4096)]).is_err());
        assert!(GuestRam::map(&block, &[(GuestAddress(1), 0, 4096)]).is_err());
    }

    #[test]
    fn a_rom_ends_at_4_gib_and_shows_below_1_mib_in_place_of_the_ram() {
        let block = ram(2 << 20);
        let rom = RamBlock::create_rom("pc.rom", &[0x90; 5000]).unwrap();
        let mut guest = GuestRam::map(&block, &[(GuestAddress(0), 0, 2 << 20)]).unwrap();
        guest.map_rom(&rom).unwrap();
        let slots: Vec<_> = guest.slots().map(|s| (s.guest_addr, s.size, s.readonly)).collect();
        let expected = [
            (0, (1 << 20) - 8192, false),
            (1 << 20, 1 << 20, false),
            ((4 << 30) - 8192, 8192, true),
            ((1 << 20) - 8192, 8192, true),
        ];
        assert_eq!(slots, expected);
    }

    #[test]
    fn kvm_takes_ram_and_a_rom_that_is_mapped_read_only() {
        let kvm = match kvm_ioctls::Kvm::new() {
            Ok(kvm) => kvm,
            Err(e) => {
                return crate::testing::skip("kvm", format!("/dev/kvm: {e}"));
            }
        };
        let block = ram(4 << 20);
        let rom = RamBlock::create_rom("pc.rom", &vec![0xf4; 64 << 10]).unwrap();
        let ranges = [(GuestAddress(0), 0, 3 << 20), (GuestAddress(4 << 30), 3 << 20, 1 << 20)];
        let mut guest = GuestRam::map(&block, &ranges).unwrap();
        guest.map_rom(&rom).unwrap();
        let vm = kvm.create_vm().unwrap();
        // SAFETY: `guest` outlives `vm`, which never runs.
        unsafe { crate::memory::set_slots(&vm, &guest) }.unwrap();
        // SAFETY: as above.
        let again = unsafe {
            vm.set_user_memory_region(kvm_bindings::kvm_userspace_memory_region {
                slot: 100,
                flags: 0,
                guest_phys_addr: 0xf_0000,
                memory_size: 4096,
                userspace_addr: guest.slots().next().unwrap().host_addr,
            })
        };
        assert_eq!(again.unwrap_err().errno(), libc::EEXIST, "the ROM does not show below 1 MiB");
        drop(vm);
    }
}
