//! A back end on the wire.

use nix::libc::NCCS;
use nix::sys::termios::{ControlFlags, InputFlags, LocalFlags, OutputFlags, Termios};
use serde::{Deserialize, Serialize};

use crate::cpr::format::{Section, SectionKind};

/// A back end on the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChardevState {
    /// Whether a client is connected.
    pub client: bool,
    /// Output that the guest has sent and nobody has got yet.
    pub output: Vec<u8>,
    /// What the terminal is to be set back to at the end.
    pub terminal: Option<TerminalState>,
}

impl Section for ChardevState {
    const KIND: SectionKind = SectionKind::Chardev;
    const VERSION: u16 = 1;
    const OLDEST: u16 = 1;
}

/// A terminal's settings (`struct termios`), without its speed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalState {
    /// `c_iflag`.
    pub input: u32,
    /// `c_oflag`.
    pub output: u32,
    /// `c_cflag`.
    pub control: u32,
    /// `c_lflag`.
    pub local: u32,
    /// `c_cc`.
    pub characters: Vec<u8>,
}

impl TerminalState {
    /// The settings of a terminal.
    pub(crate) fn of(termios: &Termios) -> Self {
        Self {
            input: termios.input_flags.bits(),
            output: termios.output_flags.bits(),
            control: termios.control_flags.bits(),
            local: termios.local_flags.bits(),
            characters: termios.control_chars.to_vec(),
        }
    }

    /// Puts the settings into those of a terminal. Ones with another number of characters are left out.
    pub(super) fn apply(&self, termios: &mut Termios) {
        termios.input_flags = InputFlags::from_bits_retain(self.input);
        termios.output_flags = OutputFlags::from_bits_retain(self.output);
        termios.control_flags = ControlFlags::from_bits_retain(self.control);
        termios.local_flags = LocalFlags::from_bits_retain(self.local);
        if let Ok(characters) = <[u8; NCCS]>::try_from(self.characters.as_slice()) {
            termios.control_chars = characters;
        }
    }
}
