//! What is x86's: what the guest is shown of the processor, its model-specific registers, interrupt chips and clocks.
//!
//! 1. [`caps`] knows what this host's KVM can do, and what was switched on in a VM.
//! 2. [`cpuid`] decides what the guest is shown at a cold boot; a load restores it verbatim, or refuses by name.
//! 3. [`clock`] keeps the guest's clocks in step with the host's over a handover.

pub mod caps;
pub mod clock;
pub mod cpuid;
pub mod features;
pub mod irqchip;
pub mod msr;
pub mod platform;
