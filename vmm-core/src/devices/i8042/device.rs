//! The device.

use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};
use vm_superio::{I8042Device, Trigger};

use crate::cpr::format::{StateReader, StateWriter};
use crate::devices::{Device, DeviceError, GuestRequest, RequestSink};

/// The keyboard controller. Its ports are [`I8042_PORT`](crate::x86::layout::I8042_PORT) and the four above.
pub struct I8042 {
    inner: Mutex<I8042Device<Reset>>,
}

impl I8042 {
    /// A controller that sends its reset to `requests`.
    pub fn new(requests: RequestSink) -> Self {
        Self { inner: Mutex::new(I8042Device::new(Reset(requests))) }
    }
}

struct Reset(RequestSink);

impl Trigger for Reset {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        (self.0)(GuestRequest::Reset);
        Ok(())
    }
}

impl DevicePio for I8042 {
    fn pio_read(&self, _base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = inner.read(at as u8);
        }
    }

    fn pio_write(&self, _base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        for (byte, at) in data.iter().zip(offset..) {
            let Ok(()) = inner.write(at as u8, *byte);
        }
    }
}

impl Device for I8042 {
    fn id(&self) -> &'static str {
        "i8042"
    }

    fn save(&self, _out: &mut StateWriter) -> Result<(), DeviceError> {
        Ok(())
    }

    fn load(&self, _state: &mut StateReader) -> Result<(), DeviceError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn only_the_reset_command_at_the_command_port_resets() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let device = I8042::new(Arc::new(move |request| sink.lock().unwrap().push(request)));
        let write = |offset, value| device.pio_write(PioAddress(0x60), offset, &[value]);
        write(0, 0xfe);
        write(4, 0xfd);
        assert!(seen.lock().unwrap().is_empty());
        write(4, 0xfe);
        assert_eq!(*seen.lock().unwrap(), [GuestRequest::Reset]);
    }
}
