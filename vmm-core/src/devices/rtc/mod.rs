//! The CMOS RTC: an MC146818 clock with 128 bytes of battery-backed RAM.
//!
//! 1. Its time is the host's `CLOCK_REALTIME` plus an offset that is 0 until the guest sets the clock; the offset is
//!    what is saved, so the clock goes on over a handover, however long that takes.
//! 2. `UIP` is set for the last 244 µs before each second, as the chip does it, so a guest that looks at it never
//!    reads a time that is half old and half new.
//! 3. It has no interrupt: alarms can be written and read back, and never come. The DSDT names none.

mod calendar;
mod clock;
mod device;
mod state;

pub use self::device::Rtc;
pub use self::state::RtcState;
