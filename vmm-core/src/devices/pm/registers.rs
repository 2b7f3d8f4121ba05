//! The registers: PM1 (ACPI 6.5, 4.8.3) and the general-purpose events of block 0 (4.8.4).

/// `PWRBTN_STS` and `PWRBTN_EN`.
pub(super) const POWER_BUTTON: u16 = 1 << 8;
/// `RTC_STS` and `RTC_EN`.
pub(super) const RTC: u16 = 1 << 10;
/// `WAK_STS`: the machine has woken. It has no enable bit.
pub(super) const WAKE: u16 = 1 << 15;
/// `SCI_EN`, read only here.
pub(super) const SCI_EN: u16 = 1;
const SLP_TYP_SHIFT: u16 = 10;
const SLP_TYP: u16 = 7 << SLP_TYP_SHIFT;
/// Control bits that are kept: `BM_RLD` and `SLP_TYP`.
pub(super) const CONTROL_BITS: u16 = 1 << 1 | SLP_TYP;
/// `SLP_EN`, write only.
const SLP_EN: u16 = 1 << 13;
/// Bytes of a [`Block`].
const BLOCK: usize = 4;

/// Which bits of a block's registers there are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bits {
    /// Those that the device can set. Writing a one clears them.
    pub status: u16,
    /// Those that the guest can set.
    pub enable: u16,
}

/// PM1 events; also enabled can be the global lock.
pub(super) const PM1: Bits = Bits { status: POWER_BUTTON | RTC | WAKE, enable: 1 << 5 | POWER_BUTTON | RTC };
/// General-purpose events: the serial port's.
pub(super) const GPE0: Bits = Bits { status: SERIAL, enable: SERIAL };
pub(super) const SERIAL: u16 = 1 << crate::x86::layout::COM1_GPE;

/// A status and an enable register of two bytes each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Block {
    pub status: u16,
    pub enable: u16,
}

impl Block {
    /// Whether an event is both set and enabled.
    fn is_active(self) -> bool {
        self.status & self.enable != 0
    }

    fn byte(self, at: usize) -> u8 {
        let ([s0, s1], [e0, e1]) = (self.status.to_le_bytes(), self.enable.to_le_bytes());
        [s0, s1, e0, e1].get(at).copied().unwrap_or(0xff)
    }

    fn write(&mut self, at: usize, byte: u8, bits: Bits) {
        let (value, mask) = in_word(at, byte);
        match at / 2 {
            0 => self.status &= !value,
            1 => self.enable = merge(self.enable, value, mask & bits.enable),
            _ => {}
        }
    }
}

/// What the guest is told of by the SCI, and woken by: each has a status and an enable bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The power button was pressed.
    PowerButton,
    /// The CMOS clock raised its interrupt.
    Alarm,
    /// The serial port received a byte.
    Serial,
}

impl Event {
    const ALL: [Self; 3] = [Self::PowerButton, Self::Alarm, Self::Serial];
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::PowerButton => "its power button",
            Self::Alarm => "its clock's alarm",
            Self::Serial => "its serial port",
        })
    }
}

/// All of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Registers {
    pub pm1: Block,
    pub control: u16,
    pub gpe0: Block,
}

impl Registers {
    /// Reads bytes from `offset` into PM1: status, enable and control, as one block of six ports. Behind it there is nothing.
    pub fn read(self, offset: usize, data: &mut [u8]) {
        let control = (self.control | SCI_EN).to_le_bytes();
        for (at, byte) in (offset..).zip(data) {
            *byte = match at {
                0..BLOCK => self.pm1.byte(at),
                _ => control.get(at - BLOCK).copied().unwrap_or(0xff),
            };
        }
    }

    /// Writes bytes from `offset` into PM1. Gives the sleep type if the guest asks for sleep by it.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> Option<u8> {
        let mut sleep = None;
        for (at, byte) in (offset..).zip(data) {
            self.pm1.write(at, *byte, PM1);
            if at / 2 == 2 {
                let (value, mask) = in_word(at, *byte);
                self.control = merge(self.control, value, mask & CONTROL_BITS);
                if value & SLP_EN != 0 {
                    sleep = Some(((self.control & SLP_TYP) >> SLP_TYP_SHIFT) as u8);
                }
            }
        }
        sleep
    }

    /// Reads bytes from `offset` into the general-purpose events.
    pub fn read_gpe0(self, offset: usize, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.gpe0.byte(at);
        }
    }

    /// Writes bytes from `offset` into the general-purpose events.
    pub fn write_gpe0(&mut self, offset: usize, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            self.gpe0.write(at, *byte, GPE0);
        }
    }

    /// Sets an event's status.
    pub fn raise(&mut self, event: Event) {
        let (block, bit) = self.place(event);
        block.status |= bit;
    }

    /// Says that the guest was woken.
    pub fn wake(&mut self) {
        self.pm1.status |= WAKE;
    }

    /// Whether it was woken, and has not taken note of that.
    pub fn is_woken(self) -> bool {
        self.pm1.status & WAKE != 0
    }

    /// An event that is both set and enabled, if there is one: the first.
    pub fn active(mut self) -> Option<Event> {
        Event::ALL.into_iter().find(|event| {
            let (block, bit) = self.place(*event);
            block.status & block.enable & bit != 0
        })
    }

    /// Whether the SCI is high.
    pub fn sci(self) -> bool {
        self.pm1.is_active() || self.gpe0.is_active()
    }

    fn place(&mut self, event: Event) -> (&mut Block, u16) {
        match event {
            Event::PowerButton => (&mut self.pm1, POWER_BUTTON),
            Event::Alarm => (&mut self.pm1, RTC),
            Event::Serial => (&mut self.gpe0, SERIAL),
        }
    }
}

/// The byte at an offset in its word, and which bits of that it is.
fn in_word(at: usize, byte: u8) -> (u16, u16) {
    let shift = 8 * (at % 2);
    (u16::from(byte) << shift, 0xff << shift)
}

fn merge(old: u16, new: u16, mask: u16) -> u16 {
    old & !mask | new & mask
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pressed() -> Registers {
        Registers { pm1: Block { status: POWER_BUTTON, enable: 0 }, ..Default::default() }
    }

    #[test]
    fn writing_a_one_clears_a_status_bit_and_a_zero_does_not() {
        let mut registers = pressed();
        registers.write(0, &[0xff, 0]);
        assert_eq!(registers.pm1.status, POWER_BUTTON);
        registers.write(0, &[0, 1]);
        assert_eq!(registers.pm1.status, 0);
    }

    #[test]
    fn bytes_words_and_both_event_registers_at_once_are_the_same_access() {
        let mut registers = pressed();
        registers.write(0, &[0, 1, 0x20, 1]);
        assert_eq!(registers.pm1, Block { status: 0, enable: 0x120 });
        let mut byte = [0];
        registers.read(3, &mut byte);
        assert_eq!(byte, [1]);
    }

    #[test]
    fn bits_that_do_not_exist_stay_zero_and_sci_en_stays_one() {
        let mut registers = Registers::default();
        registers.write(2, &[0xff, 0xff]);
        registers.write(4, &[0, 0]);
        registers.write_gpe0(2, &[0xff, 0xff, 0xff]);
        let (mut pm1, mut gpe0) = ([0; 7], [0; 5]);
        registers.read(0, &mut pm1);
        registers.read_gpe0(0, &mut gpe0);
        assert_eq!(pm1, [0, 0, 0x20, 5, 1, 0, 0xff]);
        assert_eq!(gpe0, [0, 0, SERIAL as u8, 0, 0xff]);
    }

    #[test]
    fn sleep_is_asked_for_by_slp_en_alone_and_slp_en_is_not_kept() {
        let mut registers = Registers::default();
        assert_eq!(registers.write(4, &(5u16 << 10).to_le_bytes()), None);
        assert_eq!(registers.write(4, &(5u16 << 10 | SLP_EN).to_le_bytes()), Some(5));
        assert_eq!(registers.control, 5 << 10);
        assert_eq!(registers.write(5, &[(SLP_EN >> 8) as u8 | 1 << 2]), Some(1));
    }

    #[test]
    fn each_event_has_a_status_and_an_enable_bit_of_its_own() {
        for event in Event::ALL {
            let mut registers = Registers::default();
            registers.raise(event);
            assert_eq!((registers.active(), registers.sci()), (None, false), "{event:?}");
            registers.write(2, &[0xff; 2]);
            registers.write_gpe0(2, &[0xff; 2]);
            assert_eq!((registers.active(), registers.sci()), (Some(event), true));
            registers.write(0, &[0xff; 2]);
            registers.write_gpe0(0, &[0xff; 2]);
            assert_eq!((registers.active(), registers.sci()), (None, false), "{event:?}");
        }
    }
}
