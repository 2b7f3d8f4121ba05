//! The host's timer behind the alarm.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::timer::{Expiration, TimerSetTimeFlags};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};

/// A descriptor that is readable from a time of the host's `CLOCK_REALTIME` on, and when that clock is set meanwhile.
#[derive(Debug)]
pub(super) struct Timer {
    fd: TimerFd,
    due: Option<i64>,
}

impl Timer {
    pub fn new() -> nix::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        Ok(Self { fd: TimerFd::new(ClockId::CLOCK_REALTIME, flags)?, due: None })
    }

    /// Sets it to a time, in microseconds since 1970, or to none.
    pub fn set(&mut self, due: Option<i64>) -> nix::Result<()> {
        if due == self.due {
            return Ok(());
        }
        match due {
            Some(at) => {
                // A time of zero would be none.
                let at = Duration::from_micros(u64::try_from(at).unwrap_or(0).max(1));
                let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
                match self.fd.set(Expiration::OneShot(at.into()), flags) {
                    // The clock was set since the last time: the timer is set all the same.
                    Ok(()) | Err(Errno::ECANCELED) => {}
                    Err(error) => return Err(error),
                }
            }
            None => self.fd.unset()?,
        }
        self.due = due;
        Ok(())
    }

    /// Takes back what made it readable: it is set to no time then.
    pub fn take(&mut self) {
        match self.fd.wait() {
            // It was set to another time since.
            Err(Errno::EAGAIN) => {}
            Ok(()) | Err(_) => self.due = None,
        }
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_fd().as_raw_fd()
    }
}
