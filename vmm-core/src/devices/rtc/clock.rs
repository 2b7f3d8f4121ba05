//! Registers and RAM of an MC146818.

use std::ops::RangeInclusive;

use super::alarm::Alarm;
use super::calendar::Date;
use crate::x86::layout;

/// Bytes of registers and RAM.
pub(super) const SIZE: usize = 128;

const SECONDS: usize = 0x00;
const SECONDS_ALARM: usize = 0x01;
const MINUTES: usize = 0x02;
const MINUTES_ALARM: usize = 0x03;
const HOURS: usize = 0x04;
const HOURS_ALARM: usize = 0x05;
const DAY_OF_WEEK: usize = 0x06;
const DAY: usize = 0x07;
const MONTH: usize = 0x08;
const YEAR: usize = 0x09;
const CENTURY: usize = 0x32;
/// The alarm's date: bytes of RAM where no date is 0, so that all match.
const DAY_ALARM: usize = layout::RTC_DAY_ALARM as usize;
const MONTH_ALARM: usize = layout::RTC_MONTH_ALARM as usize;
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
/// Register B: the alarm interrupts; [`ALARM`] says that it came.
pub(super) const ALARM: u8 = 1 << 5;
/// Register B: each update of the time interrupts; in register C the same bit says that one was.
pub(super) const UPDATED: u8 = 1 << 4;
/// Register B: numbers are binary, not BCD.
const BINARY: u8 = 1 << 2;
/// Register B: hours are 0 to 23, not 1 to 12 with [`PM`].
const HOURS_24: u8 = 1 << 1;
const PM: u8 = 1 << 7;
/// Register C: what came is to interrupt, and does so until the register is read.
pub(super) const IRQF: u8 = 1 << 7;
/// An alarm's register that holds one of these matches every time.
const ANY: u8 = 3 << 6;
/// Register D: the battery is good.
pub(super) const D_VALID: u8 = 1 << 7;

/// Microseconds.
pub(super) const SECOND: i64 = 1_000_000;
pub(super) const DAY_SECONDS: i64 = 86_400;
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
    /// The second of the clock, counted from 1970, up to which register C tells of updates and of the alarm.
    pub updated: i64,
}

impl Clock {
    /// A chip as a firmware leaves it in a machine with `ram_size` bytes of RAM.
    pub fn new(ram_size: u64, now: i64) -> Self {
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
        Self { cmos, offset: 0, updated: now.div_euclid(SECOND) }
    }

    /// Reads a register or a byte of RAM. Reading register C clears it.
    pub fn read(&mut self, at: usize, now: i64) -> u8 {
        match at {
            REGISTER_C => std::mem::take(&mut self.cmos[at]),
            REGISTER_A if self.runs() && (now + self.offset).rem_euclid(SECOND) >= SECOND - UPDATE => {
                self.cmos[at] | UIP
            }
            _ if self.runs() && TIME.contains(&at) => self.shown(now)[at],
            _ => self.cmos[at],
        }
    }

    /// Writes a register or a byte of RAM. `true` where an interrupt begins by that.
    pub fn write(&mut self, at: usize, value: u8, now: i64) -> bool {
        match at {
            REGISTER_A => self.cmos[at] = value & !UIP,
            REGISTER_B => {
                let ran = self.runs();
                if ran && value & SET != 0 {
                    self.cmos = self.shown(now);
                }
                // Stopping the updates stops their interrupts.
                self.cmos[at] = if value & SET == 0 { value } else { value & !UPDATED };
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
        self.raise(0)
    }

    /// Takes note in register C of the updates that there were since the last time, and of the alarm. `true` where an interrupt
    /// begins by that. To be called before anything is read or written.
    pub fn update(&mut self, now: i64) -> bool {
        if !self.runs() {
            return false;
        }
        let (before, second) = (self.updated, self.second(now));
        self.updated = second;
        if second <= before {
            return false;
        }
        let rang = self.next_alarm(before).is_some_and(|at| at <= second);
        self.raise(if rang { ALARM | UPDATED } else { UPDATED })
    }

    /// When the next interrupt begins, by the host's clock in microseconds; none while one is to be taken note of.
    pub fn next_interrupt(&self) -> Option<i64> {
        let enabled = |what| self.cmos[REGISTER_B] & what != 0;
        if !self.runs() || self.cmos[REGISTER_C] & IRQF != 0 {
            return None;
        }
        let update = enabled(UPDATED).then_some(self.updated + 1);
        let second = update.or_else(|| self.next_alarm(self.updated).filter(|_| enabled(ALARM)))?;
        Some(second * SECOND - self.offset)
    }

    /// What register C says of interrupts, if these are the flags in it.
    pub fn interrupts(&self, flags: u8) -> u8 {
        if self.cmos[REGISTER_B] & flags & (ALARM | UPDATED) == 0 { 0 } else { IRQF }
    }

    /// Sets flags in register C. `true` where an interrupt begins by that, or by what register B says by now.
    fn raise(&mut self, flags: u8) -> bool {
        let before = self.cmos[REGISTER_C];
        let flags = before & !IRQF | flags;
        self.cmos[REGISTER_C] = flags | self.interrupts(flags);
        self.cmos[REGISTER_C] & !before & IRQF != 0
    }

    /// The first second after this one in which the alarm comes, if it ever does.
    fn next_alarm(&self, after: i64) -> Option<i64> {
        let wanted = |at: usize, values: RangeInclusive<i64>, encode: fn(&Self, i64) -> u8| {
            let (byte, mut values) = (self.cmos[at], values);
            if byte & ANY == ANY {
                Some(None)
            } else {
                values.find(|value| encode(self, *value) == byte).map(Some)
            }
        };
        let date =
            |at, values| if self.cmos[at] == 0 { Some(None) } else { wanted(at, values, Self::encode) };
        let alarm = Alarm {
            second: wanted(SECONDS_ALARM, 0..=59, Self::encode)?,
            minute: wanted(MINUTES_ALARM, 0..=59, Self::encode)?,
            hour: wanted(HOURS_ALARM, 0..=23, Self::encode_hours)?,
            day: date(DAY_ALARM, 1..=31)?,
            month: date(MONTH_ALARM, 1..=12)?,
        };
        alarm.next(after)
    }

    fn second(&self, now: i64) -> i64 {
        (now + self.offset).div_euclid(SECOND)
    }

    fn runs(&self) -> bool {
        self.cmos[REGISTER_B] & SET == 0
    }

    /// The registers with the time in them.
    fn shown(&self, now: i64) -> [u8; SIZE] {
        let seconds = self.second(now);
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
        self.updated = self.second(now);
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
