//! The wire form.

use serde::{Deserialize, Serialize};

use super::registers::{Block, CONTROL_BITS, GPE0, PM1, RTC, Registers};
use crate::cpr::format::{FormatError, Section, SectionKind, decode_as, encode_as};

/// The registers as saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PmState {
    /// PM1 status.
    pub status: u16,
    /// PM1 enable.
    pub enable: u16,
    /// PM1 control, without `SCI_EN`.
    pub control: u16,
    /// Status of the general-purpose events.
    pub gpe_status: u16,
    /// Enable bits of the general-purpose events.
    pub gpe_enable: u16,
}

/// Version 1: before there was an alarm, and a general-purpose event.
#[derive(Debug, Serialize, Deserialize)]
struct PmStateV1 {
    status: u16,
    enable: u16,
    control: u16,
}

impl Section for PmState {
    const KIND: SectionKind = SectionKind::Pm;
    const VERSION: u16 = 2;
    const OLDEST: u16 = 1;
    const OLDEST_WRITTEN: u16 = 1;

    fn decode(version: u16, payload: &[u8]) -> Result<Self, FormatError> {
        if version == 1 {
            let PmStateV1 { status, enable, control } = decode_as(Self::KIND, payload)?;
            return Ok(Self { status, enable, control, gpe_status: 0, gpe_enable: 0 });
        }
        decode_as(Self::KIND, payload)
    }

    /// Version 1 knows no status of an alarm, which nobody misses where it is not enabled.
    fn encode(&self, version: u16) -> Result<Vec<u8>, FormatError> {
        let Self { status, enable, control, gpe_status: _, gpe_enable } = *self;
        let version_1_says_it = status & enable & RTC == 0 && gpe_enable == 0;
        match version {
            1 if version_1_says_it => {
                encode_as(Self::KIND, &PmStateV1 { status: status & !RTC, enable, control })
            }
            2 => encode_as(Self::KIND, self),
            _ => Err(FormatError::CannotWrite { kind: Self::KIND, version }),
        }
    }
}

impl From<Registers> for PmState {
    fn from(Registers { pm1, control, gpe0 }: Registers) -> Self {
        Self {
            status: pm1.status,
            enable: pm1.enable,
            control,
            gpe_status: gpe0.status,
            gpe_enable: gpe0.enable,
        }
    }
}

impl TryFrom<PmState> for Registers {
    /// What was found, and what may be.
    type Error = (String, String);

    fn try_from(state: PmState) -> Result<Self, Self::Error> {
        let PmState { status, enable, control, gpe_status, gpe_enable } = state;
        for (name, value, bits) in [
            ("PM1 status", status, PM1.status),
            ("PM1 enable", enable, PM1.enable),
            ("PM1 control", control, CONTROL_BITS),
            ("GPE0 status", gpe_status, GPE0.status),
            ("GPE0 enable", gpe_enable, GPE0.enable),
        ] {
            if value & !bits != 0 {
                return Err((format!("{name} {value:#06x}"), format!("no bit outside {bits:#06x}")));
            }
        }
        Ok(Self {
            pm1: Block { status, enable },
            control,
            gpe0: Block { status: gpe_status, enable: gpe_enable },
        })
    }
}
