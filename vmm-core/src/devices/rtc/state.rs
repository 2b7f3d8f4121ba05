//! The wire form.

use serde::{Deserialize, Serialize};

use super::clock::{Clock, D_VALID, MAX_OFFSET, REGISTER_A, REGISTER_C, REGISTER_D, SIZE, UIP};
use crate::cpr::format::{Section, SectionKind};

/// The CMOS RTC as saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    /// Which byte the data port leads to.
    pub index: u8,
    /// All 128 bytes of registers and RAM.
    pub cmos: Vec<u8>,
    /// What the guest's clock is ahead of the host's `CLOCK_REALTIME`, in microseconds.
    pub offset: i64,
}

impl Section for RtcState {
    const KIND: SectionKind = SectionKind::Rtc;
    const VERSION: u16 = 1;
    const OLDEST: u16 = 1;
}

impl RtcState {
    pub(super) fn new(index: u8, clock: &Clock) -> Self {
        Self { index, cmos: clock.cmos.to_vec(), offset: clock.offset }
    }

    /// The index and the chip, or what was found and what may be.
    pub(super) fn check(self) -> Result<(u8, Clock), (String, String)> {
        let wrong = |found: String, expected: String| Err((found, expected));
        if usize::from(self.index) >= SIZE {
            return wrong(format!("index {:#x}", self.index), format!("less than {SIZE:#x}"));
        }
        let cmos: [u8; SIZE] = self
            .cmos
            .try_into()
            .map_err(|cmos: Vec<u8>| (format!("{} bytes of CMOS", cmos.len()), SIZE.to_string()))?;
        for (name, at, mask, expected) in [
            ("register A", REGISTER_A, UIP, 0),
            ("register C", REGISTER_C, 0xff, 0),
            ("register D", REGISTER_D, 0xff, D_VALID),
        ] {
            if cmos[at] & mask != expected {
                let found = format!("{name} {:#04x}", cmos[at]);
                return wrong(found, format!("{expected:#04x} in its bits {mask:#04x}"));
            }
        }
        if !(-MAX_OFFSET..=MAX_OFFSET).contains(&self.offset) {
            return wrong(
                format!("a clock {} µs from the host's", self.offset),
                format!("at most {MAX_OFFSET}"),
            );
        }
        Ok((self.index, Clock { cmos, offset: self.offset }))
    }
}
