//! The device.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

use super::clock::Clock;
use super::state::RtcState;
use crate::cpr::format::{StateReader, StateWriter};
use crate::devices::{Device, DeviceError};

const ID: &str = "rtc";
/// Bit 7 of the index port masks NMIs, of which there are none.
const INDEX_MASK: u8 = 0x7f;

/// The CMOS RTC. Its ports are [`RTC_PORT`](crate::x86::layout::RTC_PORT) and the one above.
pub struct Rtc {
    inner: Mutex<Inner>,
}

struct Inner {
    index: u8,
    clock: Clock,
}

impl Rtc {
    /// A clock in step with the host's, in a machine with `ram_size` bytes of RAM.
    pub fn new(ram_size: u64) -> Self {
        Self { inner: Mutex::new(Inner { index: 0, clock: Clock::new(ram_size) }) }
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
        let inner = self.lock();
        for (byte, port) in data.iter_mut().zip(offset..) {
            *byte = match port {
                0 => inner.index,
                1 => inner.clock.read(inner.index.into(), now()),
                _ => 0xff,
            };
        }
    }

    fn pio_write(&self, _base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let mut inner = self.lock();
        for (byte, port) in data.iter().zip(offset..) {
            match port {
                0 => inner.index = byte & INDEX_MASK,
                1 => {
                    let index = inner.index.into();
                    inner.clock.write(index, *byte, now());
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

    fn save(&self, out: &mut StateWriter) -> Result<(), DeviceError> {
        let inner = self.lock();
        Ok(out.put(0, &RtcState::new(inner.index, &inner.clock))?)
    }

    fn load(&self, state: &mut StateReader) -> Result<(), DeviceError> {
        let (index, clock) = state
            .take::<RtcState>(0)?
            .check()
            .map_err(|(found, expected)| DeviceError::State { device: ID.to_owned(), found, expected })?;
        *self.lock() = Inner { index, clock };
        Ok(())
    }
}

#[cfg(test)]
mod tests;
