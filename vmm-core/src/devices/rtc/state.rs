//! The wire form.

use serde::{Deserialize, Serialize};

use super::clock::{
    ALARM, Clock, D_VALID, IRQF, MAX_OFFSET, REGISTER_A, REGISTER_B, REGISTER_C, REGISTER_D, SECOND, SIZE,
    UIP, UPDATED,
};
use crate::cpr::format::{FormatError, Section, SectionKind, decode_as, encode_as};

/// The CMOS RTC as saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    /// Which byte the data port leads to.
    pub index: u8,
    /// All 128 bytes of registers and RAM.
    pub cmos: Vec<u8>,
    /// What the guest's clock is ahead of the host's `CLOCK_REALTIME`, in microseconds.
    pub offset: i64,
    /// The second of the guest's clock, counted from 1970, up to which register C tells of updates and of the alarm; in state
    /// of builds that had no alarm none, and what came before it is loaded does not count.
    pub updated: Option<i64>,
}

/// Version 1: before there was an alarm.
#[derive(Debug, Serialize, Deserialize)]
struct RtcStateV1 {
    index: u8,
    cmos: Vec<u8>,
    offset: i64,
}

impl Section for RtcState {
    const KIND: SectionKind = SectionKind::Rtc;
    const VERSION: u16 = 2;
    const OLDEST: u16 = 1;
    const OLDEST_WRITTEN: u16 = 1;

    fn decode(version: u16, payload: &[u8]) -> Result<Self, FormatError> {
        if version == 1 {
            let RtcStateV1 { index, cmos, offset } = decode_as(Self::KIND, payload)?;
            return Ok(Self { index, cmos, offset, updated: None });
        }
        decode_as(Self::KIND, payload)
    }

    /// Version 1 has no flags in register C, which nobody misses where no interrupt is enabled.
    fn encode(&self, version: u16) -> Result<Vec<u8>, FormatError> {
        let Self { index, mut cmos, offset, .. } = self.clone();
        let interrupts = cmos.get(REGISTER_B).is_some_and(|enabled| enabled & (ALARM | UPDATED) != 0);
        match version {
            1 if !interrupts => {
                cmos.iter_mut().skip(REGISTER_C).take(1).for_each(|flags| *flags = 0);
                encode_as(Self::KIND, &RtcStateV1 { index, cmos, offset })
            }
            2 => encode_as(Self::KIND, self),
            _ => Err(FormatError::CannotWrite { kind: Self::KIND, version }),
        }
    }
}

impl RtcState {
    pub(super) fn new(index: u8, clock: &Clock) -> Self {
        Self { index, cmos: clock.cmos.to_vec(), offset: clock.offset, updated: Some(clock.updated) }
    }

    /// The index and the chip, or what was found and what may be. `now` is the host's time in microseconds.
    pub(super) fn check(self, now: i64) -> Result<(u8, Clock), (String, String)> {
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
            ("register C", REGISTER_C, !(IRQF | ALARM | UPDATED), 0),
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
        let updated = self.updated.unwrap_or((now + self.offset).div_euclid(SECOND));
        if !(-2 * MAX_OFFSET / SECOND..=2 * MAX_OFFSET / SECOND).contains(&updated) {
            return wrong(
                format!("a clock that was last updated at {updated} s"),
                format!("at most {} s from 1970", 2 * MAX_OFFSET / SECOND),
            );
        }
        let clock = Clock { cmos, offset: self.offset, updated };
        let flags = cmos[REGISTER_C];
        if flags & IRQF != clock.interrupts(flags) {
            let found = format!("register C {flags:#04x} with register B {:#04x}", cmos[REGISTER_B]);
            return wrong(found, "an interrupt where both have the same flag, and only there".to_owned());
        }
        Ok((self.index, clock))
    }
}
