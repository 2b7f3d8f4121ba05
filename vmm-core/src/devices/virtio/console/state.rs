//! Its wire form.

use serde::{Deserialize, Serialize};

use super::control::Facts;
use super::port::Stream;
use crate::cpr::format::{Section, SectionKind};

/// What the driver knows of a console's ports. What waits in their back ends is in sections of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    /// The ports, in the order of their numbers.
    pub(super) ports: Vec<PortState>,
}

impl Section for ConsoleState {
    const KIND: SectionKind = SectionKind::VirtioConsole;
    const VERSION: u16 = 1;
    const OLDEST: u16 = 1;
}

/// What the driver knows of a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PortState {
    pub(super) number: u32,
    open: bool,
    told_connected: bool,
    due: u8,
}

impl PortState {
    pub(super) fn of(number: u32, stream: &Stream) -> Self {
        Self { number, open: stream.open, told_connected: stream.told_connected, due: stream.due.bits() }
    }

    /// Puts a port in this state, or says what it found and what it expected.
    pub(super) fn load(&self, stream: &mut Stream) -> Result<(), (String, String)> {
        stream.due = Facts::from_bits(self.due).ok_or_else(|| {
            let (found, all) = (self.due, Facts::all().bits());
            (format!("{found:#x} to be told of port {}", self.number), format!("bits of {all:#x}"))
        })?;
        // One that has not asked for it yet resets the device before it does, or asks for it.
        stream.ready = true;
        stream.open = self.open;
        stream.told_connected = self.told_connected;
        Ok(())
    }
}
