//! The CMOS RTC: an MC146818 clock with 128 bytes of battery-backed RAM.
//!
//! 1. Its time is the host's `CLOCK_REALTIME` plus an offset that is 0 until the guest sets the clock; the offset is
//!    what is saved, so the clock goes on over a handover, however long that takes.
//! 2. `UIP` is set for the last 244 µs before each second, as the chip does it, so a guest that looks at it never
//!    reads a time that is half old and half new.
//! 3. It interrupts by an edge when the alarm comes, whose date may be given too, and at each update of the time, where the guest
//!    has enabled that. There are no periodic interrupts.
//! 4. It is saved up to which second that was done; what came since then is done by whoever resumes it, however long after. Where
//!    the host's clock is set meanwhile, the alarm is of the time as it is then.
//! 5. The timer behind it is set only while an interrupt is to come.

mod alarm;
mod calendar;
mod clock;
mod device;
mod events;
mod state;
mod timer;

pub use self::device::Rtc;
pub use self::events::RtcSubscriber;
pub use self::state::RtcState;
