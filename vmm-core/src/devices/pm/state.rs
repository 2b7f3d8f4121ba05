//! The wire form.

use serde::{Deserialize, Serialize};

use super::registers::{CONTROL_BITS, ENABLE_BITS, Registers, STATUS_BITS};
use crate::cpr::format::{Section, SectionKind};

/// The PM1 registers as saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PmState {
    /// PM1 status.
    pub status: u16,
    /// PM1 enable.
    pub enable: u16,
    /// PM1 control, without `SCI_EN`.
    pub control: u16,
}

impl Section for PmState {
    const KIND: SectionKind = SectionKind::Pm;
    const VERSION: u16 = 1;
    const OLDEST: u16 = 1;
}

impl From<Registers> for PmState {
    fn from(Registers { status, enable, control }: Registers) -> Self {
        Self { status, enable, control }
    }
}

impl TryFrom<PmState> for Registers {
    /// What was found, and what may be.
    type Error = (String, String);

    fn try_from(PmState { status, enable, control }: PmState) -> Result<Self, Self::Error> {
        for (name, value, bits) in [
            ("PM1 status", status, STATUS_BITS),
            ("PM1 enable", enable, ENABLE_BITS),
            ("PM1 control", control, CONTROL_BITS),
        ] {
            if value & !bits != 0 {
                return Err((format!("{name} {value:#06x}"), format!("no bit outside {bits:#06x}")));
            }
        }
        Ok(Self { status, enable, control })
    }
}
