//! The PCI transport (virtio 1.2, 4.1), without what only transitional devices have.
//!
//! `layout` is where its registers are, `registers` the common configuration, `function` the PCI function that brings
//! registers, device, interrupts and notifications together, `state` its wire form.

mod function;
mod layout;
mod registers;
mod state;

pub use self::function::{VirtioPci, Wires};
pub use self::state::{VirtioQueueState, VirtioState};

#[cfg(test)]
mod tests;
