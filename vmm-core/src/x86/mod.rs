//! What is x86 about the machine.
//!
//! 1. A guest keeps what it was shown: CPUID, the TSC's rate and VM capabilities are decided once, at its cold boot
//!    ([`platform`]), and restored verbatim. A host that lacks any of it refuses, by name.
//! 2. Time goes on: no clock of the guest steps back over a handover, and none stands still ([`clock`]).
//! 3. [`layout`] says where things are; [`boot`] puts a kernel there and [`acpi`] describes the machine to it.
//! 4. [`caps`] is the host's KVM, [`cpuid`] and [`features`] what is shown and how it is called, [`msr`] the registers
//!    that are saved one by one, [`irqchip`] the interrupt chips and the PIT.

pub mod acpi;
pub mod boot;
pub mod caps;
pub mod clock;
pub mod cpuid;
pub mod features;
pub mod irqchip;
pub mod layout;
pub mod msr;
pub mod platform;
