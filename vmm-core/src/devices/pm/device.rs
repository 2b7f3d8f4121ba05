//! The device.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

use super::registers::{Event, Registers};
use super::state::PmState;
use crate::cpr::format::{StateReader, StateWriter};
use crate::devices::{Device, DeviceError, GuestRequest, IrqLine, RequestSink, Signal};
use crate::x86::acpi::{SLEEP_TYPE_S3, SLEEP_TYPE_S5};
use crate::x86::layout::{GPE0_PORT, RESET_PORT};

const ID: &str = "pm";
/// Bit of the reset register that starts a reset; [`RESET_VALUE`](crate::x86::layout::RESET_VALUE) has it.
const RESET_CPU: u8 = 1 << 2;

/// Power management: registered at [`PM1_EVENT_PORT`](crate::x86::layout::PM1_EVENT_PORT), for
/// [`PM1_PORTS`](crate::x86::layout::PM1_PORTS), at [`GPE0_PORT`], for [`GPE0_PORTS`](crate::x86::layout::GPE0_PORTS), and at
/// [`RESET_PORT`], for one.
pub struct Pm {
    inner: Mutex<Inner>,
    sci: Arc<dyn IrqLine>,
    requests: RequestSink,
    returned: OnceLock<Signal>,
}

struct Inner {
    registers: Registers,
    quiesced: bool,
}

impl Pm {
    /// A device that drives `sci` and asks for sleep, waking, power off and reset at `requests`.
    pub fn new(sci: Arc<dyn IrqLine>, requests: RequestSink) -> Self {
        let inner = Inner { registers: Registers::default(), quiesced: false };
        Self { inner: Mutex::new(inner), sci, requests, returned: OnceLock::new() }
    }

    /// Sets an event. What comes of it is the guest's to decide.
    pub fn raise(&self, event: Event) {
        let rises = {
            let mut inner = self.lock();
            let before = inner.registers.sci();
            inner.registers.raise(event);
            self.drive(&inner);
            !before && inner.registers.sci()
        };
        if rises {
            (self.requests)(GuestRequest::Wake);
        }
    }

    /// What sets an event.
    pub fn signal(self: &Arc<Self>, event: Event) -> Signal {
        let pm = Arc::clone(self);
        Arc::new(move || pm.raise(event))
    }

    /// An event that is there, and the guest, which has it enabled, has not taken note of yet.
    pub fn active(&self) -> Option<Event> {
        self.lock().registers.active()
    }

    /// Has it signalled that a guest that slept has taken note of being woken: its interrupt chips are as it wants them. Once.
    pub fn on_return(&self, returned: Signal) {
        // Nobody else sets it.
        let _ = self.returned.set(returned);
    }

    /// Tells the guest, which sleeps and goes on after this, that it was woken.
    pub fn wake(&self) {
        self.lock().registers.wake();
    }

    fn drive(&self, inner: &Inner) {
        if !inner.quiesced {
            self.sci.set(inner.registers.sci());
        }
    }

    fn sleep(&self, sleep_type: u8) {
        match sleep_type {
            SLEEP_TYPE_S3 => (self.requests)(GuestRequest::Sleep),
            SLEEP_TYPE_S5 => (self.requests)(GuestRequest::PowerOff),
            other => tracing::warn!("guest asks for sleep type {other}, which the DSDT does not name"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DevicePio for Pm {
    fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        let registers = self.lock().registers;
        match base.0 {
            RESET_PORT => data.fill(0),
            GPE0_PORT => registers.read_gpe0(offset.into(), data),
            _ => registers.read(offset.into(), data),
        }
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if base.0 == RESET_PORT {
            if data.first().is_some_and(|value| value & RESET_CPU != 0) {
                (self.requests)(GuestRequest::Reset);
            }
            return;
        }
        let (sleep, returned) = {
            let mut inner = self.lock();
            let woken = inner.registers.is_woken();
            let sleep = if base.0 == GPE0_PORT {
                inner.registers.write_gpe0(offset.into(), data);
                None
            } else {
                inner.registers.write(offset.into(), data)
            };
            self.drive(&inner);
            (sleep, woken && !inner.registers.is_woken())
        };
        if let Some(signal) = self.returned.get().filter(|_| returned) {
            signal();
        }
        if let Some(sleep_type) = sleep {
            self.sleep(sleep_type);
        }
    }
}

impl Device for Pm {
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
        self.drive(&inner);
    }

    fn save(&self, out: &mut StateWriter) -> Result<(), DeviceError> {
        Ok(out.put(0, &PmState::from(self.lock().registers))?)
    }

    fn load(&self, state: &mut StateReader) -> Result<(), DeviceError> {
        let registers = state
            .take::<PmState>(0)?
            .try_into()
            .map_err(|(found, expected)| DeviceError::State { device: ID.to_owned(), found, expected })?;
        let mut inner = self.lock();
        inner.registers = registers;
        self.drive(&inner);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
