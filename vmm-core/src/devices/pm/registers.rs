//! The PM1 registers (ACPI 6.5, 4.8.3).

/// `PWRBTN_STS` and `PWRBTN_EN`.
pub(super) const POWER_BUTTON: u16 = 1 << 8;
/// `WAK_STS`: the machine has woken. It has no enable bit.
pub(super) const WAKE: u16 = 1 << 15;
/// Status bits that the device can set. Writing a one clears them.
pub(super) const STATUS_BITS: u16 = POWER_BUTTON | WAKE;
/// Enable bits that there are: global lock, power button and RTC; Linux complains of an `RTC_EN` that does not stay set.
pub(super) const ENABLE_BITS: u16 = 1 << 5 | POWER_BUTTON | 1 << 10;
/// `SCI_EN`, read only here.
pub(super) const SCI_EN: u16 = 1;
const SLP_TYP_SHIFT: u16 = 10;
const SLP_TYP: u16 = 7 << SLP_TYP_SHIFT;
/// Control bits that are kept: `BM_RLD` and `SLP_TYP`.
pub(super) const CONTROL_BITS: u16 = 1 << 1 | SLP_TYP;
/// `SLP_EN`, write only.
const SLP_EN: u16 = 1 << 13;

/// Status, enable and control, as one block of six ports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Registers {
    pub status: u16,
    pub enable: u16,
    pub control: u16,
}

impl Registers {
    /// Reads bytes from `offset` into the block. Behind it there is nothing.
    pub fn read(self, offset: usize, data: &mut [u8]) {
        let [s0, s1] = self.status.to_le_bytes();
        let [e0, e1] = self.enable.to_le_bytes();
        let [c0, c1] = (self.control | SCI_EN).to_le_bytes();
        let block = [s0, s1, e0, e1, c0, c1];
        for (at, byte) in data.iter_mut().enumerate() {
            *byte = block.get(offset + at).copied().unwrap_or(0xff);
        }
    }

    /// Writes bytes from `offset` into the block. Gives the sleep type if the guest asks for sleep by it.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> Option<u8> {
        let mut sleep = None;
        for (at, byte) in data.iter().enumerate().map(|(at, byte)| (offset + at, *byte)) {
            let shift = 8 * (at % 2);
            let (value, mask) = (u16::from(byte) << shift, 0xff << shift);
            match at / 2 {
                0 => self.status &= !value,
                1 => self.enable = merge(self.enable, value, mask & ENABLE_BITS),
                2 => {
                    self.control = merge(self.control, value, mask & CONTROL_BITS);
                    if value & SLP_EN != 0 {
                        sleep = Some(((self.control & SLP_TYP) >> SLP_TYP_SHIFT) as u8);
                    }
                }
                _ => {}
            }
        }
        sleep
    }

    /// Whether the SCI is high.
    pub fn sci(self) -> bool {
        self.status & self.enable != 0
    }
}

fn merge(old: u16, new: u16, mask: u16) -> u16 {
    old & !mask | new & mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_a_one_clears_a_status_bit_and_a_zero_does_not() {
        let mut registers = Registers { status: POWER_BUTTON, ..Default::default() };
        registers.write(0, &[0xff, 0]);
        assert_eq!(registers.status, POWER_BUTTON);
        registers.write(0, &[0, 1]);
        assert_eq!(registers.status, 0);
    }

    #[test]
    fn bytes_words_and_both_event_registers_at_once_are_the_same_access() {
        let mut registers = Registers { status: POWER_BUTTON, ..Default::default() };
        registers.write(0, &[0, 1, 0x20, 1]);
        assert_eq!(registers, Registers { status: 0, enable: 0x120, control: 0 });
        let mut byte = [0];
        registers.read(3, &mut byte);
        assert_eq!(byte, [1]);
    }

    #[test]
    fn bits_that_do_not_exist_stay_zero_and_sci_en_stays_one() {
        let mut registers = Registers::default();
        registers.write(2, &[0xff, 0xff]);
        registers.write(4, &[0, 0]);
        let mut block = [0; 7];
        registers.read(0, &mut block);
        assert_eq!(block, [0, 0, 0x20, 5, 1, 0, 0xff]);
    }

    #[test]
    fn sleep_is_asked_for_by_slp_en_alone_and_slp_en_is_not_kept() {
        let mut registers = Registers::default();
        assert_eq!(registers.write(4, &(5u16 << 10).to_le_bytes()), None);
        assert_eq!(registers.write(4, &(5u16 << 10 | SLP_EN).to_le_bytes()), Some(5));
        assert_eq!(registers.control, 5 << 10);
        assert_eq!(registers.write(5, &[(SLP_EN >> 8) as u8 | 1 << 2]), Some(1));
    }
}
