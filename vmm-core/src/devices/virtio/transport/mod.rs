//! The PCI transport (virtio 1.2, 4.1), without what only transitional devices have.
//!
//! `layout` is where its registers are, `registers` the common configuration, `function` the PCI function that brings
//! registers, device, interrupts and notifications together, `run` gives the queues to the device and takes them back,
//! `device` is how the function is stopped, saved and loaded, `state` its wire form.

mod device;
mod function;
mod layout;
mod registers;
mod run;
mod state;

pub use self::function::{VirtioPci, Wires};
pub use self::state::{VirtioQueueState, VirtioState};

#[cfg(test)]
mod tests;
