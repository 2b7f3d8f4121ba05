//! PCI on the wire. The instance of a function's sections is its slot.

use serde::{Deserialize, Serialize};

use crate::cpr::format::{Section, SectionKind};

/// The bus: what is not of one function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciBusState {
    /// The address port (0xcf8).
    pub address: u32,
    /// Where BARs decode.
    pub ranges: Vec<PciRangeState>,
}

/// A BAR that decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciRangeState {
    /// Of the function in this slot.
    pub slot: u8,
    /// Its first register.
    pub bar: u8,
    /// Where.
    pub address: u64,
}

impl Section for PciBusState {
    const KIND: SectionKind = SectionKind::PciBus;
    const VERSION: u16 = 1;
    const OLDEST: u16 = 1;
}

/// The configuration space of a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciConfigState {
    /// All registers, whether they can be written or not.
    pub registers: Vec<u8>,
}

impl Section for PciConfigState {
    const KIND: SectionKind = SectionKind::PciConfig;
    const VERSION: u16 = 1;
    const OLDEST: u16 = 1;
}

/// The MSI-X vectors of a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    /// The table.
    pub table: Vec<MsixEntry>,
    /// Which vectors are pending.
    pub pending: Vec<bool>,
}

/// An entry of the MSI-X table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixEntry {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
    /// Vector control: bit 0 masks.
    pub control: u32,
}

impl Section for MsixState {
    const KIND: SectionKind = SectionKind::Msix;
    const VERSION: u16 = 1;
    const OLDEST: u16 = 1;
}
