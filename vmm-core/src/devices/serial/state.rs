//! The port on the wire: the registers of a 16550 as vm-superio keeps them.

use serde::{Deserialize, Serialize};

use crate::cpr::format::{Section, SectionKind};

/// What the receive FIFO holds.
const FIFO: usize = 64;
/// Line status: there is data in the receive FIFO.
const DATA_READY: u8 = 1;

/// A serial port on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    /// Divisor latch, low byte.
    pub divisor_low: u8,
    /// Divisor latch, high byte.
    pub divisor_high: u8,
    /// Interrupt enable register.
    pub interrupt_enable: u8,
    /// Interrupt identification register.
    pub interrupt_identification: u8,
    /// Line control register.
    pub line_control: u8,
    /// Line status register.
    pub line_status: u8,
    /// Modem control register.
    pub modem_control: u8,
    /// Modem status register.
    pub modem_status: u8,
    /// Scratch register.
    pub scratch: u8,
    /// What the guest has not read yet, oldest first.
    pub input: Vec<u8>,
    /// Whether the guest was told that the transmitter is busy, and waits to hear that it is not.
    pub throttled: bool,
}

impl Section for SerialState {
    const KIND: SectionKind = SectionKind::Serial;
    const VERSION: u16 = 1;
    const OLDEST: u16 = 1;
}

impl SerialState {
    /// The wire form of a port.
    pub(super) fn of(uart: vm_superio::SerialState, throttled: bool) -> Self {
        Self {
            divisor_low: uart.baud_divisor_low,
            divisor_high: uart.baud_divisor_high,
            interrupt_enable: uart.interrupt_enable,
            interrupt_identification: uart.interrupt_identification,
            line_control: uart.line_control,
            line_status: uart.line_status,
            modem_control: uart.modem_control,
            modem_status: uart.modem_status,
            scratch: uart.scratch,
            input: uart.in_buffer,
            throttled,
        }
    }

    /// The registers; an error says what in them is not possible, and what would be.
    pub(super) fn registers(&self) -> Result<vm_superio::SerialState, (String, String)> {
        if self.input.len() > FIFO {
            return Err((
                format!("{} bytes in the receive FIFO", self.input.len()),
                format!("at most {FIFO}"),
            ));
        }
        if (self.line_status & DATA_READY != 0) == self.input.is_empty() {
            return Err((
                format!("line status {:#04x} with {} bytes of input", self.line_status, self.input.len()),
                "its data-ready bit to tell whether there is input".into(),
            ));
        }
        Ok(vm_superio::SerialState {
            baud_divisor_low: self.divisor_low,
            baud_divisor_high: self.divisor_high,
            interrupt_enable: self.interrupt_enable,
            interrupt_identification: self.interrupt_identification,
            line_control: self.line_control,
            line_status: self.line_status,
            modem_control: self.modem_control,
            modem_status: self.modem_status,
            scratch: self.scratch,
            in_buffer: self.input.clone(),
        })
    }
}
