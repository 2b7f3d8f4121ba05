//! The configuration space that the guest sees (PCI Local Bus 3.0, chapter 6; PCI Express 5.0, 7.5.3).
//!
//! 1. A byte is the machine's own, built once and kept in a [`ConfigSpace`], or the device's, read and written where it is.
//! 2. Of the capabilities the guest sees those whose registers are known here; each stays where the device has it. There are
//!    no extended ones.
//! 3. A device in a slot of the root bus is an endpoint of the root complex: it has no link.

use std::ops::Range;

use super::handle::{BARS, CONFIG, HEADER, Handle};
use crate::devices::pci::{BarKind, BarSpec, ConfigSpace, ROM};

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const EXPANSION_ROM: usize = 0x30;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_PIN: usize = 0x3d;
const HEADER_TYPE: usize = 0x0e;

/// I/O space, memory space.
const COMMAND_SPACES: u8 = 3;
const COMMAND_MASTER: u8 = 4;
/// In the second byte.
const COMMAND_INTX_DISABLE: u8 = 4;
/// There is a list of capabilities.
const STATUS_CAPABILITIES: u8 = 0x10;

const POWER: u8 = 0x01;
const MSI: u8 = 0x05;
const VENDOR: u8 = 0x09;
const EXPRESS: u8 = 0x10;
const MSIX: u8 = 0x11;

/// Of the power capability: the state, and that the device is as it was after one.
const POWER_STATE: u8 = 3;
const NO_SOFT_RESET: u8 = 8;
/// Message control of MSI: it is on; how many are; addresses have 64 bits; each can be masked.
pub(super) const MSI_ENABLE: u16 = 1;
const MSI_MULTIPLE: u16 = 7 << 4;
pub(super) const MSI_64_BIT: u16 = 1 << 7;
const MSI_MASKING: u16 = 1 << 8;
/// Of an express capability: a function of the root complex, in the registers' first version, which has no more than these.
const ROOT_COMPLEX_ENDPOINT: u8 = 9 << 4;
const EXPRESS_VERSION: u8 = 1;
const EXPRESS_SIZE: usize = 12;

/// Where a capability that this machine deals with is, and what it begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capability {
    pub(super) at: usize,
    /// Message control.
    pub(super) control: u16,
}

/// The MSI-X capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MsixCapability {
    pub(super) at: usize,
    pub(super) count: u16,
    /// BAR and offset of the table.
    pub(super) table: (usize, u64),
    /// BAR and offset of the pending bits.
    pub(super) pending: (usize, u64),
}

/// The configuration space of an assigned device.
pub(super) struct Registers {
    /// What is the machine's own.
    pub(super) space: ConfigSpace,
    /// What is the device's.
    passed: Vec<Range<usize>>,
    pub(super) msi: Option<Capability>,
    pub(super) msix: Option<MsixCapability>,
    pub(super) has_pin: bool,
}

impl Registers {
    /// What the guest sees of a device. An error says what it is that no guest could use.
    pub(super) fn new(image: [u8; CONFIG], sizes: [u64; ROM + 1]) -> Result<Self, (String, String)> {
        if image[HEADER_TYPE] & 0x7f != 0 {
            let found = format!("a header of type {}", image[HEADER_TYPE] & 0x7f);
            return Err((found, "a type 0 function".into()));
        }
        let (mut bytes, mut writable) = ([0; CONFIG], [0; CONFIG]);
        bytes[..HEADER].copy_from_slice(&image[..HEADER]);
        // One function in its slot, without a built-in self test; its ROM is switched off.
        bytes[0x0f] = 0;
        bytes[HEADER_TYPE] = 0;
        bytes[EXPANSION_ROM..EXPANSION_ROM + 4].fill(0);
        bytes[COMMAND..STATUS + 2].fill(0);
        bytes[CAPABILITIES] = 0;
        bytes[BAR0..BAR0 + 4 * BARS as usize].fill(0);
        let has_pin = image[INTERRUPT_PIN] != 0;
        bytes[INTERRUPT_PIN] = has_pin.into();
        writable[COMMAND] = COMMAND_SPACES | COMMAND_MASTER;
        writable[COMMAND + 1] = COMMAND_INTX_DISABLE;
        writable[0x0c] = 0xff;
        writable[0x3c] = 0xff;
        let mut registers = Self {
            space: ConfigSpace::of(bytes, writable, &[]),
            passed: std::iter::once(STATUS..STATUS + 2).collect(),
            msi: None,
            msix: None,
            has_pin,
        };
        let mut link = CAPABILITIES;
        for (at, id) in capabilities(&image) {
            let Some(size) = registers.take(&image, at, id, &mut bytes, &mut writable) else { continue };
            tracing::trace!("capability {id:#x} at {at:#x}: {size} bytes");
            bytes[at] = id;
            bytes[link] = at as u8;
            link = at + 1;
        }
        registers.space = ConfigSpace::of(bytes, writable, &bars(&image, sizes)?);
        Ok(registers)
    }

    /// Takes a capability in, if it is known, and gives its size.
    fn take(
        &mut self,
        image: &[u8; CONFIG],
        at: usize,
        id: u8,
        bytes: &mut [u8; CONFIG],
        writable: &mut [u8; CONFIG],
    ) -> Option<usize> {
        let word = |at: usize| u16::from_le_bytes([image[at], image[at + 1]]);
        let long = |at: usize| u32::from(word(at)) | u32::from(word(at + 2)) << 16;
        let fits = |size: usize| (at + size <= CONFIG).then_some(size);
        let size = match id {
            POWER => {
                let size = fits(8)?;
                // No power management events, and no state that it would come back from changed.
                bytes[at + 2] = image[at + 2] & 7;
                bytes[at + 4] = NO_SOFT_RESET;
                writable[at + 4] = POWER_STATE;
                size
            }
            MSI => {
                let control = fits(10).map(|_| word(at + 2))? & !(MSI_MASKING | MSI_ENABLE | MSI_MULTIPLE);
                let wide = control & MSI_64_BIT != 0;
                let size = fits(if wide { 14 } else { 10 })?;
                bytes[at + 2..at + 4].copy_from_slice(&control.to_le_bytes());
                writable[at + 2] = (MSI_ENABLE | MSI_MULTIPLE) as u8;
                writable[at + 4..at + size].fill(0xff);
                writable[at + 4] = 0xfc;
                self.msi = Some(Capability { at, control });
                size
            }
            MSIX => {
                let size = fits(12)?;
                let control = word(at + 2) & 0x7ff;
                let place = |at| ((long(at) & 7) as usize, u64::from(long(at) & !7));
                bytes[at + 2..at + 4].copy_from_slice(&control.to_le_bytes());
                bytes[at + 4..at + 12].copy_from_slice(&image[at + 4..at + 12]);
                writable[at + 3] = 0xc0;
                self.msix = Some(MsixCapability {
                    at,
                    count: control + 1,
                    table: place(at + 4),
                    pending: place(at + 8),
                });
                size
            }
            EXPRESS => {
                let size = fits(EXPRESS_SIZE)?;
                bytes[at + 2] = ROOT_COMPLEX_ENDPOINT | EXPRESS_VERSION;
                self.passed.push(at + 4..at + size);
                size
            }
            VENDOR => {
                let size = fits(image[at + 2].max(3).into())?;
                self.passed.push(at + 2..at + size);
                size
            }
            _ => return None,
        };
        Some(size)
    }

    fn is_passed(&self, at: usize) -> bool {
        self.passed.iter().any(|range| range.contains(&at))
    }

    /// Reads for the guest. What the device does not answer reads as ones.
    pub(super) fn read(&self, handle: &Handle, offset: usize, data: &mut [u8]) {
        self.space.read(offset, data);
        for (at, byte) in (offset..).zip(&mut *data).filter(|(at, _)| self.is_passed(*at)) {
            let mut one = [0xff];
            if let Err(error) = handle.read_config(at, &mut one) {
                tracing::warn!("{}: reading its register {at:#x}: {error}", handle.id());
            }
            // The machine's own has nothing there but, in the status, that there are capabilities.
            *byte |= one[0];
        }
    }

    /// Writes for the guest.
    pub(super) fn write(&mut self, handle: &Handle, offset: usize, data: &[u8]) {
        self.space.write(offset, data);
        let mut passed: Vec<(usize, Vec<u8>)> = Vec::new();
        for (at, byte) in (offset..).zip(data).filter(|(at, _)| self.is_passed(*at)) {
            match passed.last_mut() {
                Some((from, bytes)) if *from + bytes.len() == at => bytes.push(*byte),
                _ => passed.push((at, vec![*byte])),
            }
        }
        if offset < STATUS && offset + data.len() > COMMAND {
            passed.push((COMMAND, self.command().to_le_bytes().to_vec()));
        }
        for (at, bytes) in passed {
            if let Err(error) = handle.write_config(at, &bytes) {
                tracing::warn!("{}: writing its register {at:#x}: {error}", handle.id());
            }
        }
    }

    /// The command register as the device gets it: its spaces stay enabled.
    /// Takes the device off the bus, until the guest has it master that again.
    pub(super) fn leave_bus(&mut self) {
        let [low, high] = self.space.word(COMMAND).to_le_bytes();
        self.space.write(COMMAND, &[low & !COMMAND_MASTER, high]);
    }

    pub(super) fn command(&self) -> u16 {
        self.space.word(COMMAND) | u16::from(COMMAND_SPACES)
    }
}

/// The capabilities that a device has: where, and which.
fn capabilities(image: &[u8; CONFIG]) -> Vec<(usize, u8)> {
    let mut found = Vec::new();
    if image[STATUS] & STATUS_CAPABILITIES == 0 {
        return found;
    }
    let mut at = usize::from(image[CAPABILITIES] & !3);
    // A list that goes round in a circle ends where it began.
    while at >= HEADER && found.iter().all(|(before, _)| *before != at) {
        found.push((at, image[at]));
        at = usize::from(image[at + 1] & !3);
    }
    found
}

/// The BARs that a device has, and its ROM.
fn bars(image: &[u8; CONFIG], sizes: [u64; ROM + 1]) -> Result<Vec<BarSpec>, (String, String)> {
    let (mut specs, mut index) = (Vec::new(), 0);
    while index < BARS as usize {
        let flags = image[BAR0 + 4 * index];
        let kind = match flags & 7 {
            flags if flags & 1 != 0 => BarKind::Io,
            4 => BarKind::Memory64,
            _ => BarKind::Memory32,
        };
        let size = sizes[index];
        if size != 0 {
            let least = if kind == BarKind::Io { 4 } else { 16 };
            if !size.is_power_of_two() || size < least {
                return Err((format!("BAR {index} of {size:#x} bytes"), "a power of two".into()));
            }
            specs.push(BarSpec { index, kind, prefetchable: kind != BarKind::Io && flags & 8 != 0, size });
        }
        index += if kind == BarKind::Memory64 { 2 } else { 1 };
    }
    let rom = sizes[ROM];
    if rom != 0 {
        specs.push(BarSpec { index: ROM, kind: BarKind::Rom, prefetchable: false, size: rom });
    }
    Ok(specs)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk controller with power management, MSI-X, an unknown capability and an express one.
    fn image() -> [u8; CONFIG] {
        let mut image = [0; CONFIG];
        image[..4].copy_from_slice(&[0x36, 0x1b, 0x10, 0x00]);
        image[STATUS] = STATUS_CAPABILITIES;
        image[COMMAND] = 7;
        image[BAR0] = 4;
        image[0x18] = 1;
        image[CAPABILITIES] = 0x40;
        image[INTERRUPT_PIN] = 2;
        image[0x40..0x4c].copy_from_slice(&[MSIX, 0x60, 64, 0x80, 0, 0x20, 0, 0, 0, 0x30, 0, 0]);
        image[0x60..0x68].copy_from_slice(&[POWER, 0x70, 0x0b, 0xfe, 3, 0x80, 0, 0]);
        image[0x70..0x74].copy_from_slice(&[0x03, 0x80, 0, 0]);
        image[0x80..0x84].copy_from_slice(&[EXPRESS, 0, 0x02, 0]);
        image
    }

    const SIZES: [u64; 7] = [0x4000, 0, 0x20, 0, 0, 0, 0x8000];

    fn byte(registers: &Registers, at: usize) -> u8 {
        let mut byte = [0];
        registers.space.read(at, &mut byte);
        byte[0]
    }

    #[test]
    fn what_is_known_is_linked_where_it_is_and_the_rest_is_hidden() {
        let registers = Registers::new(image(), SIZES).unwrap();
        assert_eq!(byte(&registers, CAPABILITIES), 0x40);
        assert_eq!([0x40, 0x41].map(|at| byte(&registers, at)), [MSIX, 0x60]);
        assert_eq!([0x60, 0x61].map(|at| byte(&registers, at)), [POWER, 0x80]);
        assert_eq!([0x80, 0x81].map(|at| byte(&registers, at)), [EXPRESS, 0]);
        assert_eq!(byte(&registers, 0x70), 0);
        let msix = registers.msix.unwrap();
        assert_eq!((msix.count, msix.table, msix.pending), (65, (0, 0x2000), (0, 0x3000)));
        // Off, and in a state that it does not have to come back from.
        assert_eq!([0x43, 0x64].map(|at| byte(&registers, at)), [0, NO_SOFT_RESET]);
        assert!(registers.is_passed(0x84) && !registers.is_passed(0x82) && registers.is_passed(STATUS));
    }

    #[test]
    fn its_spaces_stay_enabled_whatever_the_guest_says() {
        let mut registers = Registers::new(image(), SIZES).unwrap();
        assert_eq!(registers.command(), 3);
        registers.space.write(COMMAND, &[4, 4]);
        assert_eq!(registers.command(), 0x407);
        assert!(registers.space.bars().iter().all(|bar| !bar.enabled));
    }

    #[test]
    fn bars_are_of_the_kinds_and_sizes_that_the_device_has() {
        let registers = Registers::new(image(), SIZES).unwrap();
        let bars: Vec<_> = registers.space.bars().iter().map(|bar| bar.spec).collect();
        let expected = [
            BarSpec { index: 0, kind: BarKind::Memory64, prefetchable: false, size: 0x4000 },
            BarSpec { index: 2, kind: BarKind::Io, prefetchable: false, size: 0x20 },
            BarSpec { index: 6, kind: BarKind::Rom, prefetchable: false, size: 0x8000 },
        ];
        assert_eq!(bars, expected);
        assert!(Registers::new(image(), [0x3000, 0, 0, 0, 0, 0, 0]).is_err());
    }

    #[test]
    fn a_list_that_goes_round_or_out_of_the_space_ends() {
        let mut image = image();
        image[0x81] = 0x40;
        assert_eq!(capabilities(&image).len(), 4);
        image[0x81] = 0xfc;
        image[0xfc] = MSIX;
        assert!(Registers::new(image, SIZES).unwrap().msix.is_some_and(|msix| msix.at == 0x40));
        image[HEADER_TYPE] = 1;
        assert!(Registers::new(image, SIZES).is_err());
    }
}
