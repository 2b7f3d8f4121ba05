//! The port.

use std::cell::Cell;
use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use event_manager::EventOps;
use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};
use vm_superio::Trigger;
use vm_superio::serial::NoEvents;

use super::{SerialState, SerialSubscriber};
use crate::cpr::Mode;
use crate::cpr::fds::FdTable;
use crate::cpr::format::{StateReader, StateWriter};
use crate::devices::chardev::{Chardev, ChardevState};
use crate::devices::{Device, DeviceError, IrqLine, Signal};

/// First I/O port of COM1.
pub const COM1: u16 = 0x3f8;
/// Number of I/O ports.
pub const COM1_SIZE: u16 = 8;
/// The interrupt of COM1.
pub const COM1_IRQ: u32 = 4;

/// The section instance of COM1 and of its back end.
const INSTANCE: u32 = 0;

/// Register offsets.
const DATA: u8 = 0;
const INTERRUPT_ENABLE: u8 = 1;
const LINE_CONTROL: u8 = 3;
const MODEM_CONTROL: u8 = 4;
const LINE_STATUS: u8 = 5;
/// Line control: the divisor latch shows in place of data and interrupt enable.
const DIVISOR_LATCH: u8 = 0x80;
/// Modem control: what is sent comes back.
const LOOPBACK: u8 = 0x10;
/// Interrupt identification: there is none.
const NONE_PENDING: u8 = 1;
/// Line status: the transmitter takes a byte, and has sent the last.
const TRANSMITTER_EMPTY: u8 = 0x60;

type Uart = vm_superio::Serial<Interrupt, NoEvents, Vec<u8>>;

/// The port's interrupt: an edge. Silent while a state is being loaded.
struct Interrupt {
    line: Arc<dyn IrqLine>,
    armed: Cell<bool>,
}

impl Trigger for Interrupt {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        if self.armed.get() {
            self.line.set(true);
            self.line.set(false);
        }
        Ok(())
    }
}

/// A serial port.
pub struct Serial {
    id: &'static str,
    line: Arc<dyn IrqLine>,
    received: Signal,
    inner: Mutex<Inner>,
}

struct Inner {
    /// Its writer is where a byte waits between the register and the back end.
    uart: Uart,
    chardev: Chardev,
    /// The guest was told that the transmitter is busy.
    throttled: bool,
    /// The back end may have input for which there was no room.
    waiting: bool,
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serial").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Serial {
    /// A port after reset, on a back end. It interrupts at `line`, and says at `received` that it has input, whether that interrupts
    /// or not.
    pub fn new(id: &'static str, line: Arc<dyn IrqLine>, received: Signal, chardev: Chardev) -> Arc<Self> {
        let interrupt = Interrupt { line: line.clone(), armed: Cell::new(true) };
        let uart = Uart::with_events(interrupt, NoEvents, Vec::new());
        let inner = Inner { uart, chardev, throttled: false, waiting: false };
        Arc::new(Self { id, line, received, inner: Mutex::new(inner) })
    }

    /// What goes in the event manager.
    pub fn subscriber(self: &Arc<Self>) -> SerialSubscriber {
        SerialSubscriber(self.clone())
    }

    /// The path of the pseudo-terminal that it is on, if it is on one.
    pub fn pty_path(&self) -> Option<PathBuf> {
        self.lock().chardev.pty_path().map(Into::into)
    }

    /// Interrupts once more for what is to be taken note of: a guest that slept has not heard of it.
    pub fn interrupt_again(&self) {
        let inner = self.lock();
        if inner.uart.state().interrupt_identification & NONE_PENDING == 0 {
            // Cannot fail.
            let _ = inner.uart.interrupt_evt().trigger();
        }
    }

    pub(super) fn watch(&self, ops: &mut EventOps) {
        self.lock().chardev.watch(ops);
    }

    /// Moves what can be moved in both directions.
    pub(super) fn service(&self, ops: &mut EventOps) {
        let mut inner = self.lock();
        if inner.chardev.wake() {
            if inner.receive() {
                (self.received)();
            }
            inner.chardev.service(ops);
            inner.release();
        }
    }

    /// A panic elsewhere must not take the guest's console with it: every change under the lock is whole.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Reads as much input as the FIFO takes. `false` if there was none.
    fn receive(&mut self) -> bool {
        let (mut buf, mut any) = ([0; 64], false);
        loop {
            let looped = self.uart.read(MODEM_CONTROL) & LOOPBACK != 0;
            let room = if looped { 0 } else { self.uart.fifo_capacity().min(buf.len()) };
            self.waiting = room == 0;
            let read = self.chardev.read(&mut buf[..room]);
            if read == 0 {
                return any;
            }
            any = true;
            // Cannot fail: there is room, and the trigger does not.
            let _ = self.uart.enqueue_raw_bytes(&buf[..read]);
        }
    }

    /// Tells a guest that was held back that it may send again.
    fn release(&mut self) {
        if self.throttled && self.chardev.room() {
            self.throttled = false;
            // Writing the interrupt enable register back raises the interrupt, if the guest has it enabled.
            let line_control = self.uart.read(LINE_CONTROL);
            self.set(LINE_CONTROL, line_control & !DIVISOR_LATCH);
            let enabled = self.uart.read(INTERRUPT_ENABLE);
            self.set(INTERRUPT_ENABLE, enabled);
            self.set(LINE_CONTROL, line_control);
        }
    }

    fn set(&mut self, register: u8, value: u8) {
        // Cannot fail: neither the trigger nor a `Vec` does.
        let _ = self.uart.write(register, value);
    }

    fn write(&mut self, register: u8, value: u8) {
        self.set(register, value);
        if !self.uart.writer().is_empty() {
            self.chardev.write(self.uart.writer());
            self.uart.writer_mut().clear();
            self.throttled |= !self.chardev.room();
        }
        if register == MODEM_CONTROL && self.waiting {
            self.chardev.kick();
        }
    }

    fn read(&mut self, register: u8) -> u8 {
        let value = self.uart.read(register);
        match register {
            DATA if self.waiting => self.chardev.kick(),
            LINE_STATUS if !self.chardev.room() => {
                self.throttled = true;
                return value & !TRANSMITTER_EMPTY;
            }
            _ => {}
        }
        value
    }
}

impl DevicePio for Serial {
    /// A register is a byte: of a string instruction's bytes each is an access to the same register.
    fn pio_read(&self, _base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        let mut inner = self.lock();
        data.fill_with(|| inner.read(offset as u8));
    }

    fn pio_write(&self, _base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let mut inner = self.lock();
        for value in data {
            inner.write(offset as u8, *value);
        }
    }
}

impl Device for Serial {
    fn id(&self) -> &str {
        self.id
    }

    fn quiesce(&self, _deadline: Instant) -> Result<(), DeviceError> {
        self.lock().chardev.quiesce();
        Ok(())
    }

    fn resume(&self) {
        self.lock().chardev.resume();
    }

    fn save(&self, out: &mut StateWriter) -> Result<(), DeviceError> {
        let inner = self.lock();
        out.put(INSTANCE, &SerialState::of(inner.uart.state(), inner.throttled))?;
        out.put(INSTANCE, &inner.chardev.state())?;
        Ok(())
    }

    fn load(&self, state: &mut StateReader) -> Result<(), DeviceError> {
        let serial: SerialState = state.take(INSTANCE)?;
        let chardev: ChardevState = state.take(INSTANCE)?;
        let impossible = |(found, expected)| DeviceError::State { device: self.id.into(), found, expected };
        let registers = serial.registers().map_err(impossible)?;
        let mut inner = self.lock();
        let interrupt = Interrupt { line: self.line.clone(), armed: Cell::new(false) };
        let uart = Uart::from_state(&registers, interrupt, NoEvents, Vec::new())
            .map_err(|e| impossible((e.to_string(), "registers that a port can have".into())))?;
        uart.interrupt_evt().armed.set(true);
        inner.chardev.load(chardev)?;
        inner.uart = uart;
        inner.throttled = serial.throttled;
        Ok(())
    }

    fn hand_over(&self) {
        self.lock().chardev.hand_over();
    }

    fn descriptors(&self, mode: Mode, fds: &mut FdTable) -> Result<(), DeviceError> {
        match mode {
            Mode::CprTransfer | Mode::CprExec => Ok(self.lock().chardev.register(fds)?),
            Mode::CprReboot => Ok(()),
        }
    }
}
