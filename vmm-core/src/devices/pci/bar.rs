//! Base address registers (PCI Local Bus 3.0, 6.2.5).

use serde::{Deserialize, Serialize};

/// The index of the expansion ROM, as VFIO counts.
pub const ROM: usize = 6;
/// Where the BARs begin, and the one of the ROM.
const BARS: usize = 0x10;
const EXPANSION_ROM: usize = 0x30;
/// The switch of a ROM.
pub(super) const ROM_ENABLE: u64 = 1;

/// What a BAR decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BarKind {
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere; takes the next register too.
    Memory64,
    /// Ports.
    Io,
    /// An expansion ROM: memory below 4 GiB that is read only, and has a switch of its own.
    Rom,
}

/// A BAR as a function is built with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BarSpec {
    /// Its first register, 0 to 5; [`ROM`] that of an expansion ROM.
    pub index: usize,
    /// What it decodes.
    pub kind: BarKind,
    /// Whether reads have no side effects.
    pub prefetchable: bool,
    /// Bytes, a power of two; at least 16 of memory, 4 of ports, 2048 of a ROM.
    pub size: u64,
}

/// A BAR as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// How it was built.
    pub spec: BarSpec,
    /// What its registers say.
    pub address: u64,
    /// Whether its space is enabled in the command register, and a ROM by its own switch.
    pub enabled: bool,
}

impl BarSpec {
    /// Its first register, in configuration space.
    pub(super) fn at(&self) -> usize {
        if self.kind == BarKind::Rom { EXPANSION_ROM } else { BARS + 4 * self.index }
    }

    /// Bytes of registers that it takes.
    pub(super) fn registers(&self) -> usize {
        if self.kind == BarKind::Memory64 { 8 } else { 4 }
    }

    /// The bits of its registers that say what it is.
    pub(super) fn flags(&self) -> u64 {
        let kind = match self.kind {
            BarKind::Memory32 | BarKind::Rom => 0,
            BarKind::Memory64 => 4,
            BarKind::Io => return 1,
        };
        kind | u64::from(self.prefetchable) << 3
    }

    /// The bits of its registers that hold an address.
    pub(super) fn mask(&self) -> u64 {
        let width = if self.kind == BarKind::Memory64 { u64::MAX } else { u32::MAX.into() };
        !(self.size - 1) & width
    }
    /// The bits of its registers that the guest can write.
    pub(super) fn writable(&self) -> u64 {
        if self.kind == BarKind::Rom { self.mask() | ROM_ENABLE } else { self.mask() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::pci::{ConfigSpace, Identity};

    #[test]
    fn a_rom_decodes_with_its_own_switch_and_that_of_memory_on() {
        let spec = BarSpec { index: ROM, kind: BarKind::Rom, prefetchable: false, size: 0x1_0000 };
        let mut config = ConfigSpace::new(Identity::default(), &[spec]);
        // What firmware does to learn the size: all ones, but the switch.
        config.write(EXPANSION_ROM, &0xffff_fffe_u32.to_le_bytes());
        let mut register = [0; 4];
        config.read(EXPANSION_ROM, &mut register);
        assert_eq!(u32::from_le_bytes(register), 0xffff_0000);
        let mut place = |register: u32, command: u8| {
            config.write(EXPANSION_ROM, &register.to_le_bytes());
            config.write(4, &[command]);
            let bar = config.bars()[0];
            (bar.address, bar.enabled)
        };
        assert_eq!(place(0xfeb0_0000, 2), (0xfeb0_0000, false));
        assert_eq!(place(0xfeb0_0001, 0), (0xfeb0_0000, false));
        assert_eq!(place(0xfeb0_0801, 2), (0xfeb0_0000, true));
    }
}
