//! The device.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

use super::registers::{POWER_BUTTON, Registers, WAKE};
use super::state::PmState;
use crate::cpr::format::{StateReader, StateWriter};
use crate::devices::{Device, DeviceError, GuestRequest, IrqLine, RequestSink};
use crate::x86::acpi::{SLEEP_TYPE_S3, SLEEP_TYPE_S5};
use crate::x86::layout::RESET_PORT;

const ID: &str = "pm";
/// Bit of the reset register that starts a reset; [`RESET_VALUE`](crate::x86::layout::RESET_VALUE) has it.
const RESET_CPU: u8 = 1 << 2;

/// Power management: registered both at [`PM1_EVENT_PORT`](crate::x86::layout::PM1_EVENT_PORT), for
/// [`PM1_PORTS`](crate::x86::layout::PM1_PORTS), and at [`RESET_PORT`], for one.
pub struct Pm {
    inner: Mutex<Inner>,
    sci: Arc<dyn IrqLine>,
    requests: RequestSink,
}

struct Inner {
    registers: Registers,
    quiesced: bool,
}

impl Pm {
    /// A device that drives `sci` and asks for sleep, power off and reset at `requests`.
    pub fn new(sci: Arc<dyn IrqLine>, requests: RequestSink) -> Self {
        let inner = Inner { registers: Registers::default(), quiesced: false };
        Self { inner: Mutex::new(inner), sci, requests }
    }

    /// Presses the power button. What comes of it is the guest's to decide.
    pub fn press_power_button(&self) {
        let mut inner = self.lock();
        inner.registers.status |= POWER_BUTTON;
        self.drive(&inner);
    }

    /// Whether it was pressed, and the guest has not taken note of that yet, which it is to.
    pub fn is_power_button_pressed(&self) -> bool {
        let Registers { status, enable, .. } = self.lock().registers;
        status & enable & POWER_BUTTON != 0
    }

    /// Tells the guest, which sleeps and goes on after this, that it was woken.
    pub fn wake(&self) {
        self.lock().registers.status |= WAKE;
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
        if base.0 == RESET_PORT {
            data.fill(0);
        } else {
            self.lock().registers.read(offset.into(), data);
        }
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if base.0 == RESET_PORT {
            if data.first().is_some_and(|value| value & RESET_CPU != 0) {
                (self.requests)(GuestRequest::Reset);
            }
            return;
        }
        let sleep = {
            let mut inner = self.lock();
            let sleep = inner.registers.write(offset.into(), data);
            self.drive(&inner);
            sleep
        };
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
