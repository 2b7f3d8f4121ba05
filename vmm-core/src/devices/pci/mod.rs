//! PCI: one root bus of type 0 functions (PCI Local Bus 3.0, PCI Express 5.0 chapter 7).
//!
//! 1. Every function has addresses for its BARs before the guest starts; the guest moves them as it likes. A BAR decodes
//!    only while its space is enabled, inside a window of the host bridge, and where no other BAR decodes.
//! 2. A write to configuration space and the moves that follow from it are one step. No access to a BAR waits for it: a
//!    vCPU that moves a BAR under another's feet sends that one to the old place or to the new.
//! 3. A function is a trait: it brings its own configuration space, BARs and interrupts, be they emulated or a real
//!    device's.
//! 4. A masked MSI-X vector keeps its signals in its eventfd: the pending bit is that counter, and unmasking hands it to
//!    KVM. No signal is lost between the two.
//! 5. What is loaded is checked: a register that is not writable must be as it was built, a BAR must lie in a window and
//!    alone.
//!
//! `function` is the trait, `config_space` the registers that emulated functions share, `bar` their base addresses, `msi`
//! what the machine gives to a function and `msix` its table, `intx` the four shared lines, `windows` and `ranges` where
//! BARs may be and are, `bus` brings it together, `state` is on the wire.

mod bar;
mod bus;
mod config_space;
#[cfg(any(test, feature = "fuzzing"))]
#[cfg_attr(not(test), allow(dead_code))]
pub(crate) mod fake;
mod function;
mod host_bridge;
mod intx;
pub mod msi;
mod msix;
mod ranges;
mod state;
mod windows;

pub use self::bar::{Bar, BarKind, BarSpec, ROM};
pub use self::bus::{PciBus, SLOTS};
pub use self::config_space::{ConfigSpace, Identity};
pub use self::function::PciFunction;
pub use self::host_bridge::HostBridge;
pub use self::intx::{Intx, IntxLine, LINES};
pub use self::msix::Msix;
pub use self::state::{MsixEntry, MsixState, PciBusState, PciConfigState, PciRangeState};
pub use self::windows::Windows;

#[cfg(test)]
mod tests;
