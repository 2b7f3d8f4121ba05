//! An assigned device on the wire: what the kernel was told of its interrupts, and is not told again. The instance is the
//! function's slot.

use serde::{Deserialize, Serialize};

use crate::cpr::format::{Section, SectionKind};

/// Which interrupts the kernel sends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Armed {
    /// None.
    #[default]
    None,
    /// INTx.
    Intx,
    /// MSI.
    Msi,
    /// MSI-X.
    Msix,
}

/// An assigned device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VfioState {
    /// Which interrupts the kernel sends.
    pub armed: Armed,
    /// Which vectors of MSI or MSI-X it sends.
    pub wired: Vec<u16>,
}

impl Section for VfioState {
    const KIND: SectionKind = SectionKind::Vfio;
    const VERSION: u16 = 1;
    const OLDEST: u16 = 1;
}
