//! INTx: four lines that all functions share, level triggered.

use std::sync::{Arc, Mutex, PoisonError};

use crate::devices::IrqLine;

/// How many lines there are.
pub const LINES: usize = 4;

/// A line of the machine that is high while any function holds it so.
pub struct IntxLine {
    line: Arc<dyn IrqLine>,
    /// A bit for each slot.
    held: Mutex<u32>,
}

impl IntxLine {
    /// A line that nobody holds.
    pub fn new(line: Arc<dyn IrqLine>) -> Arc<Self> {
        Arc::new(Self { line, held: Mutex::default() })
    }
}

/// The INTA# pin of the function in a slot.
#[derive(Clone)]
pub struct Intx {
    line: Arc<IntxLine>,
    slot: u8,
}

impl Intx {
    /// The pin of the function in `slot`, on one of the `lines`.
    pub fn new(lines: &[Arc<IntxLine>; LINES], slot: u8) -> Self {
        Self { line: Arc::clone(&lines[Self::line_of(slot, 0)]), slot }
    }

    /// Which line a pin (0 is INTA#) of a slot arrives at: each slot begins one further.
    pub fn line_of(slot: u8, pin: u8) -> usize {
        usize::from(slot + pin) % LINES
    }

    /// Drives the pin. When this returns, the interrupt chips have seen it.
    pub fn set(&self, asserted: bool) {
        let mut held = self.line.held.lock().unwrap_or_else(PoisonError::into_inner);
        let bit = 1 << self.slot;
        *held = if asserted { *held | bit } else { *held & !bit };
        self.line.line.set(*held != 0);
    }
}
