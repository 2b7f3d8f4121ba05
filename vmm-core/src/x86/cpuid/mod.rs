//! CPUID: what the guest is shown of the host's processor.
//!
//! 1. [`template()`] is decided once, at a cold boot: what KVM supports, less what cannot move with a guest or would not
//!    be kept for it, less what the configuration masks. [`for_vcpu`] adds what differs between vCPUs.
//! 2. What was shown is saved, and restored verbatim.
//! 3. [`missing_features`] names what a host lacks of what was shown; it never compares by number alone.

mod entry;
mod missing;
mod template;
#[cfg(test)]
mod tests;
mod topology;

pub use self::entry::{CpuidEntry, Register};
pub use self::missing::missing_features;
pub use self::template::template;
pub use self::topology::for_vcpu;
pub use super::features::{CpuidError, Mask};

/// The leaf of processor information and feature bits.
const LEAF_FEATURES: u32 = 1;
/// The leaf of the XSAVE state components.
const LEAF_XSAVE: u32 = 0xd;
/// The leaf of address widths.
const LEAF_ADDRESS: u32 = 0x8000_0008;

/// The entry of a leaf and sub-leaf.
fn find(entries: &[CpuidEntry], leaf: u32, subleaf: u32) -> Option<&CpuidEntry> {
    entries.iter().find(|e| e.function == leaf && e.index == subleaf)
}
