//! What is x86 about the machine.
//!
//! 1. [`layout`] is the one place that says where things are in the guest's address and port space.
//! 2. [`boot`] puts a kernel into RAM and a vCPU at its entry; [`acpi`] describes the machine to it.

pub mod acpi;
pub mod boot;
pub mod layout;
