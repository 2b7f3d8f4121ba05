//! The serial port COM1: a 16550 over a [`Chardev`](super::chardev::Chardev).
//!
//! 1. Input is read only as far as the FIFO has room, and again when the guest has read.
//! 2. While the back end's queue is full the line status register says that the transmitter is busy; as soon as it is
//!    not, the guest that waits for an interrupt gets one.
//! 3. Saving and loading raise no interrupt: what was raised is in the interrupt chips.
//!
//! `device.rs` is the port, `events.rs` its place in the event loop, `state.rs` its wire form.

mod device;
mod events;
mod state;

pub use self::device::{COM1, COM1_IRQ, COM1_SIZE, Serial};
pub use self::events::SerialSubscriber;
pub use self::state::SerialState;

#[cfg(test)]
mod tests;
