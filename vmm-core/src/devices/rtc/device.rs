//! The device.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use event_manager::{EventOps, EventSet, Events};
use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

use super::RtcSubscriber;
use super::clock::Clock;
use super::state::RtcState;
use super::timer::Timer;
use crate::cpr::format::{StateReader, StateWriter};
use crate::devices::{Device, DeviceError, IrqLine, Signal};

const ID: &str = "rtc";
/// Bit 7 of the index port masks NMIs, of which there are none.
const INDEX_MASK: u8 = 0x7f;

/// The CMOS RTC. Its ports are [`RTC_PORT`](crate::x86::layout::RTC_PORT) and the one above.
pub struct Rtc {
    line: Arc<dyn IrqLine>,
    interrupted: Signal,
    inner: Mutex<Inner>,
}

struct Inner {
    index: u8,
    clock: Clock,
    timer: Timer,
    quiesced: bool,
}

impl fmt::Debug for Rtc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rtc").finish_non_exhaustive()
    }
}

impl Rtc {
    /// A clock in step with the host's, in a machine with `ram_size` bytes of RAM. It interrupts at `line`, and says so at
    /// `interrupted`.
    pub fn new(ram_size: u64, line: Arc<dyn IrqLine>, interrupted: Signal) -> Result<Arc<Self>, DeviceError> {
        let timer = Timer::new().map_err(DeviceError::io(ID, "making a timer"))?;
        let inner = Inner { index: 0, clock: Clock::new(ram_size, now()), timer, quiesced: false };
        Ok(Arc::new(Self { line, interrupted, inner: Mutex::new(inner) }))
    }

    /// What goes in the event manager.
    pub fn subscriber(self: &Arc<Self>) -> RtcSubscriber {
        RtcSubscriber(Arc::clone(self))
    }

    pub(super) fn watch(&self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.lock().timer, EventSet::IN)) {
            tracing::error!("{ID}: watching its timer: {error}");
        }
    }

    /// An interrupt is due, or the host's clock was set.
    pub(super) fn expired(&self) {
        let mut inner = self.lock();
        inner.timer.take();
        if !inner.quiesced {
            self.update(&mut inner, now());
            Self::arm(&mut inner);
        }
    }

    /// Does what came since the last time.
    fn update(&self, inner: &mut Inner, now: i64) {
        if inner.clock.update(now) {
            self.interrupt();
        }
    }

    fn interrupt(&self) {
        self.line.set(true);
        self.line.set(false);
        (self.interrupted)();
    }

    /// Sets the timer to what comes next.
    fn arm(inner: &mut Inner) {
        if let Err(error) = inner.timer.set(inner.clock.next_interrupt()) {
            tracing::error!("{ID}: setting its timer: {error}; an alarm comes late");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The host's `CLOCK_REALTIME` in microseconds. A host that thinks that it is before 1970 is at 1970.
fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}

impl DevicePio for Rtc {
    fn pio_read(&self, _base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        let inner = &mut *self.lock();
        for (byte, port) in data.iter_mut().zip(offset..) {
            *byte = match port {
                0 => inner.index,
                1 => {
                    let now = now();
                    self.update(inner, now);
                    let byte = inner.clock.read(inner.index.into(), now);
                    Self::arm(inner);
                    byte
                }
                _ => 0xff,
            };
        }
    }

    fn pio_write(&self, _base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let inner = &mut *self.lock();
        for (byte, port) in data.iter().zip(offset..) {
            match port {
                0 => inner.index = byte & INDEX_MASK,
                1 => {
                    let now = now();
                    self.update(inner, now);
                    if inner.clock.write(inner.index.into(), *byte, now) {
                        self.interrupt();
                    }
                    Self::arm(inner);
                }
                _ => {}
            }
        }
    }
}

impl Device for Rtc {
    fn id(&self) -> &str {
        ID
    }

    fn quiesce(&self, _deadline: Instant) -> Result<(), DeviceError> {
        self.lock().quiesced = true;
        Ok(())
    }

    fn resume(&self) {
        let mut inner = self.lock();
        inner.quiesced = false;
        self.update(&mut inner, now());
        Self::arm(&mut inner);
    }

    fn save(&self, out: &mut StateWriter) -> Result<(), DeviceError> {
        let inner = self.lock();
        Ok(out.put(0, &RtcState::new(inner.index, &inner.clock))?)
    }

    fn load(&self, state: &mut StateReader) -> Result<(), DeviceError> {
        let (index, clock) = state.take::<RtcState>(0)?.check(now()).map_err(DeviceError::impossible(ID))?;
        let mut inner = self.lock();
        (inner.index, inner.clock) = (index, clock);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
