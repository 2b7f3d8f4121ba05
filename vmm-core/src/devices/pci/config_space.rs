//! The configuration space of an emulated type 0 function: 256 bytes of which some bits can be written.

use super::bar::{Bar, BarKind, BarSpec, ROM_ENABLE};
use super::state::PciConfigState;

/// Bytes of it. What lies behind, up to 4 KiB, reads as zero: no extended capabilities.
pub(super) const SIZE: usize = 256;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const INTERRUPT_PIN: usize = 0x3d;
/// Where capabilities are put.
const HEADER_END: usize = 0x40;

const COMMAND_IO: u8 = 1;
const COMMAND_MEMORY: u8 = 2;
const COMMAND_MASTER: u8 = 4;
/// In the command register's second byte.
const COMMAND_INTX_DISABLE: u8 = 4;
const STATUS_INTERRUPT: u8 = 8;
const STATUS_CAPABILITIES: u8 = 0x10;

/// What a function is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass and programming interface, 24 bits.
    pub class: u32,
    /// Subsystem vendor.
    pub subsystem_vendor: u16,
    /// Subsystem.
    pub subsystem: u16,
    /// Whether it has the INTA# pin.
    pub interrupt_pin: bool,
}

/// The registers of an emulated function.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    bars: Vec<BarSpec>,
    /// Where the pointer to the next capability goes, and where that one goes.
    link: usize,
    free: usize,
    interrupt: bool,
}

impl ConfigSpace {
    /// The registers of a function without capabilities, its BARs at 0 and disabled.
    pub fn new(identity: Identity, bars: &[BarSpec]) -> Self {
        let mut config = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            bars: bars.to_vec(),
            link: CAPABILITIES,
            free: HEADER_END,
            interrupt: false,
        };
        let [interface, subclass, class, _] = identity.class.to_le_bytes();
        config.put(0x00, &identity.vendor.to_le_bytes());
        config.put(0x02, &identity.device.to_le_bytes());
        config.put(0x08, &[identity.revision, interface, subclass, class]);
        config.put(0x2c, &identity.subsystem_vendor.to_le_bytes());
        config.put(0x2e, &identity.subsystem.to_le_bytes());
        config.put(INTERRUPT_PIN, &[identity.interrupt_pin.into()]);
        config.writable[COMMAND] = COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER;
        config.writable[COMMAND + 1] = COMMAND_INTX_DISABLE;
        config.writable[0x0c] = 0xff;
        config.writable[INTERRUPT_LINE] = 0xff;
        config.put_bars();
        config
    }

    /// The registers of a function whose capabilities are where they are: all bytes but the BARs', and which bits of them the
    /// guest can write.
    pub fn of(bytes: [u8; SIZE], writable: [u8; SIZE], bars: &[BarSpec]) -> Self {
        let (bars, interrupt) = (bars.to_vec(), false);
        let mut config = Self { bytes, writable, bars, link: CAPABILITIES, free: SIZE, interrupt };
        config.put_bars();
        if config.bytes[CAPABILITIES] != 0 {
            config.bytes[STATUS] |= STATUS_CAPABILITIES;
        }
        config
    }

    fn put_bars(&mut self) {
        for bar in self.bars.clone() {
            let (at, size) = (bar.at(), bar.registers());
            self.put(at, &bar.flags().to_le_bytes()[..size]);
            self.writable[at..at + size].copy_from_slice(&bar.writable().to_le_bytes()[..size]);
        }
    }

    /// Adds a capability and gives its offset: `body` is what follows its id and pointer, `writable` the bits of it that
    /// the guest can write.
    ///
    /// # Panics
    /// Where there is no room: what a function has is written in its code.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.free;
        let end = at + 2 + body.len();
        assert!(end <= SIZE && writable.len() <= body.len(), "capability {id:#x} ends at {end:#x}");
        self.put(at, &[id]);
        self.put(at + 2, body);
        self.writable[at + 2..at + 2 + writable.len()].copy_from_slice(writable);
        self.put(self.link, &[at as u8]);
        self.bytes[STATUS] |= STATUS_CAPABILITIES;
        (self.link, self.free) = (at + 1, end.next_multiple_of(4));
        at
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Reads bytes from `offset`; zero where there is nothing.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.bytes.get(at).copied().unwrap_or(0);
            if at == STATUS && self.interrupt {
                *byte |= STATUS_INTERRUPT;
            }
        }
    }

    /// Writes the writable bits from `offset`.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        let registers = self.bytes.iter_mut().zip(self.writable).skip(offset);
        for ((byte, mask), value) in registers.zip(data) {
            *byte = *byte & !mask | value & mask;
        }
    }

    /// A 16-bit register.
    pub fn word(&self, offset: usize) -> u16 {
        let mut word = [0; 2];
        self.read(offset, &mut word);
        u16::from_le_bytes(word)
    }

    /// Writes bytes that the guest cannot: where an interrupt was wired to.
    pub fn set_interrupt_line(&mut self, line: u8) {
        self.bytes[INTERRUPT_LINE] = line;
    }

    /// Shows in the status register whether INTx is asserted.
    pub fn set_interrupt_status(&mut self, asserted: bool) {
        self.interrupt = asserted;
    }

    /// Whether the guest has switched INTx off.
    pub fn intx_disabled(&self) -> bool {
        self.bytes[COMMAND + 1] & COMMAND_INTX_DISABLE != 0
    }

    /// Its BARs as they stand.
    pub fn bars(&self) -> Vec<Bar> {
        let bar = |spec: &BarSpec| {
            let mut value = [0; 8];
            self.read(spec.at(), &mut value[..spec.registers()]);
            let value = u64::from_le_bytes(value);
            let space = if spec.kind == BarKind::Io { COMMAND_IO } else { COMMAND_MEMORY };
            let switch = spec.kind != BarKind::Rom || value & ROM_ENABLE != 0;
            Bar {
                spec: *spec,
                address: value & spec.mask(),
                enabled: switch && self.bytes[COMMAND] & space != 0,
            }
        };
        self.bars.iter().map(bar).collect()
    }

    /// Its wire form.
    pub fn state(&self) -> PciConfigState {
        PciConfigState { registers: self.bytes.to_vec() }
    }

    /// Takes registers from the wire; an error says what in them is not possible, and what would be.
    pub fn load(&mut self, state: &PciConfigState) -> Result<(), (String, String)> {
        let registers: &[u8; SIZE] = state.registers.as_slice().try_into().map_err(|_| {
            (format!("{} bytes of PCI configuration space", state.registers.len()), SIZE.to_string())
        })?;
        let fixed = registers.iter().zip(self.bytes).zip(self.writable);
        for (at, ((found, built), writable)) in fixed.enumerate() {
            if (found ^ built) & !writable != 0 {
                return Err((
                    format!("PCI register {at:#04x} is {found:#04x}"),
                    format!("{built:#04x} but for the bits {writable:#04x}"),
                ));
            }
        }
        self.bytes = *registers;
        Ok(())
    }
}
