//! Registers and RAM of an MC146818.

use super::calendar::Date;
use crate::x86::layout;

/// Bytes of registers and RAM.
pub(super) const SIZE: usize = 128;

const SECONDS: usize = 0x00;
const MINUTES: usize = 0x02;
const HOURS: usize = 0x04;
const DAY_OF_WEEK: usize = 0x06;
const DAY: usize = 0x07;
const MONTH: usize = 0x08;
const YEAR: usize = 0x09;
const CENTURY: usize = 0x32;
const TIME: [usize; 8] = [SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DAY, MONTH, YEAR, CENTURY];

pub(super) const REGISTER_A: usize = 0x0a;
pub(super) const REGISTER_B: usize = 0x0b;
pub(super) const REGISTER_C: usize = 0x0c;
pub(super) const REGISTER_D: usize = 0x0d;
/// Register A: an update of the time is near.
pub(super) const UIP: u8 = 1 << 7;
/// Register A at reset: 32768 Hz time base, 1024 Hz rate.
const A_RESET: u8 = 0x26;
/// Register B: updates are stopped, so that the guest can set the time.
const SET: u8 = 1 << 7;
/// Register B: numbers are binary, not BCD.
const BINARY: u8 = 1 << 2;
/// Register B: hours are 0 to 23, not 1 to 12 with [`PM`].
const HOURS_24: u8 = 1 << 1;
const PM: u8 = 1 << 7;
/// Register D: the battery is good.
pub(super) const D_VALID: u8 = 1 << 7;

/// Microseconds.
pub(super) const SECOND: i64 = 1_000_000;
const DAY_SECONDS: i64 = 86_400;
/// How long before an update [`UIP`] is set, in microseconds.
const UPDATE: i64 = 244;
/// More than the greatest offset that setting the clock can lead to, in microseconds: bytes reach to the year 25755.
pub(super) const MAX_OFFSET: i64 = 30_000 * 366 * DAY_SECONDS * SECOND;

/// The chip. Times are in microseconds since 1970; `now` is the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Clock {
    /// Registers and RAM; those of the time hold it only while it is stopped by [`SET`].
    pub cmos: [u8; SIZE],
    /// What the clock is ahead of the host's, in microseconds.
    pub offset: i64,
}

impl Clock {
    /// A chip as a firmware leaves it in a machine with `ram_size` bytes of RAM.
    pub fn new(ram_size: u64) -> Self {
        let mut cmos = [0; SIZE];
        cmos[REGISTER_A] = A_RESET;
        cmos[REGISTER_B] = HOURS_24;
        cmos[REGISTER_D] = D_VALID;
        let low = layout::low_ram_end(ram_size);
        let above = |start: u64, unit: u64| ((low.saturating_sub(start)) / unit).min(0xffff);
        let extended = above(1 << 20, 1 << 10);
        let mut store = |at: usize, bytes: usize, value: u64| {
            cmos[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        };
        store(0x15, 2, 640);
        store(0x17, 2, extended);
        store(0x30, 2, extended);
        store(0x34, 2, above(16 << 20, 64 << 10));
        store(0x5b, 3, ((ram_size - low) >> 16).min(0xff_ffff));
        Self { cmos, offset: 0 }
    }

    /// Reads a register or a byte of RAM.
    pub fn read(&self, at: usize, now: i64) -> u8 {
        match at {
            REGISTER_A if self.runs() && (now + self.offset).rem_euclid(SECOND) >= SECOND - UPDATE => {
                self.cmos[at] | UIP
            }
            _ if self.runs() && TIME.contains(&at) => self.shown(now)[at],
            _ => self.cmos[at],
        }
    }

    /// Writes a register or a byte of RAM.
    pub fn write(&mut self, at: usize, value: u8, now: i64) {
        match at {
            REGISTER_A => self.cmos[at] = value & !UIP,
            REGISTER_B => {
                let ran = self.runs();
                if ran && value & SET != 0 {
                    self.cmos = self.shown(now);
                }
                self.cmos[at] = value;
                if !ran && value & SET == 0 {
                    self.set(now);
                }
            }
            REGISTER_C | REGISTER_D => {}
            _ if self.runs() && TIME.contains(&at) => {
                self.cmos = self.shown(now);
                self.cmos[at] = value;
                self.set(now);
            }
            _ => self.cmos[at] = value,
        }
    }

    fn runs(&self) -> bool {
        self.cmos[REGISTER_B] & SET == 0
    }

    /// The registers with the time in them.
    fn shown(&self, now: i64) -> [u8; SIZE] {
        let seconds = (now + self.offset).div_euclid(SECOND);
        let (days, of_day) = (seconds.div_euclid(DAY_SECONDS), seconds.rem_euclid(DAY_SECONDS));
        let date = Date::from_days(days);
        let mut cmos = self.cmos;
        cmos[SECONDS] = self.encode(of_day % 60);
        cmos[MINUTES] = self.encode(of_day / 60 % 60);
        cmos[HOURS] = self.encode_hours(of_day / 3600);
        // 1970-01-01 was a Thursday; Sunday is 1.
        cmos[DAY_OF_WEEK] = self.encode((days + 4).rem_euclid(7) + 1);
        cmos[DAY] = self.encode(date.day);
        cmos[MONTH] = self.encode(date.month);
        cmos[YEAR] = self.encode(date.year.rem_euclid(100));
        cmos[CENTURY] = self.encode(date.year.div_euclid(100).rem_euclid(100));
        cmos
    }

    /// Goes on from the time in the registers. What is no date is carried into one.
    fn set(&mut self, now: i64) {
        let value = |at: usize| self.decode(self.cmos[at]);
        let date = Date {
            year: value(CENTURY) * 100 + value(YEAR),
            month: value(MONTH).clamp(1, 12),
            day: value(DAY),
        };
        let hours = self.decode_hours(self.cmos[HOURS]);
        let seconds = hours * 3600 + value(MINUTES) * 60 + value(SECONDS);
        self.offset = (date.to_days() * DAY_SECONDS + seconds) * SECOND - now;
    }

    fn encode(&self, value: i64) -> u8 {
        if self.cmos[REGISTER_B] & BINARY != 0 { value as u8 } else { (value / 10 * 16 + value % 10) as u8 }
    }

    fn decode(&self, byte: u8) -> i64 {
        let byte = i64::from(byte);
        if self.cmos[REGISTER_B] & BINARY != 0 { byte } else { byte / 16 * 10 + byte % 16 }
    }

    fn encode_hours(&self, hours: i64) -> u8 {
        if self.cmos[REGISTER_B] & HOURS_24 != 0 {
            return self.encode(hours);
        }
        let half = if hours >= 12 { PM } else { 0 };
        self.encode((hours + 11) % 12 + 1) | half
    }

    fn decode_hours(&self, byte: u8) -> i64 {
        if self.cmos[REGISTER_B] & HOURS_24 != 0 {
            return self.decode(byte);
        }
        let half = if byte & PM != 0 { 12 } else { 0 };
        self.decode(byte & !PM) % 12 + half
    }
}

#[cfg(test)]
mod tests;
