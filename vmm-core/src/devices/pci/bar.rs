//! Base address registers.

use serde::{Deserialize, Serialize};

/// What a BAR decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BarKind {
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere; takes the next register too.
    Memory64,
    /// Ports.
    Io,
}

/// A BAR as a function is built with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BarSpec {
    /// Its first register, 0 to 5.
    pub index: usize,
    /// What it decodes.
    pub kind: BarKind,
    /// Whether reads have no side effects.
    pub prefetchable: bool,
    /// Bytes, a power of two; at least 16 of memory, at least 4 of ports.
    pub size: u64,
}

/// A BAR as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// How it was built.
    pub spec: BarSpec,
    /// What its registers say.
    pub address: u64,
    /// Whether its space is enabled in the command register.
    pub enabled: bool,
}

impl BarSpec {
    /// Bytes of registers that it takes.
    pub(super) fn registers(&self) -> usize {
        if self.kind == BarKind::Memory64 { 8 } else { 4 }
    }

    /// The bits of its registers that say what it is.
    pub(super) fn flags(&self) -> u64 {
        let kind = match self.kind {
            BarKind::Memory32 => 0,
            BarKind::Memory64 => 4,
            BarKind::Io => return 1,
        };
        kind | u64::from(self.prefetchable) << 3
    }

    /// The bits of its registers that hold an address.
    pub(super) fn mask(&self) -> u64 {
        let width = if self.kind == BarKind::Memory64 { u64::MAX } else { u32::MAX.into() };
        !(self.size - 1) & width
    }
}
