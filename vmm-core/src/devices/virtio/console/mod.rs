//! virtio-console: byte streams with names between guest and host (virtio 1.2, 5.3).
//!
//! 1. Port 0 is the console, if there is one; the others are found by their names in the guest
//!    (`org.qemu.guest_agent.0`). Each is on a [`Chardev`](crate::devices::chardev::Chardev) of its own.
//! 2. Bytes wait where they are until the other side takes them: in the driver's queue while the back end is full, in the
//!    back end while the guest has the port closed or gives no buffer.
//! 3. What the driver is still to be told is a set of facts for each port, not a list of messages: it cannot grow, however
//!    often a driver asks.
//! 4. A client that is connected to a port's socket stays connected over transfer and exec.
//!
//! `device.rs` is the device, `port.rs` one of its ports, `control.rs` what is said about ports, `streams.rs` moves the
//! bytes, `events.rs` is its place in the event loop.

mod config;
mod control;
mod device;
mod events;
mod port;
mod state;
mod streams;
#[cfg(test)]
mod tests;

pub use self::config::{ConsoleConfig, MAX_PORTS};
pub use self::device::Console;
pub use self::events::ConsoleSubscriber;
pub use self::state::ConsoleState;
