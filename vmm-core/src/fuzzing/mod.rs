//! A machine without KVM, and a driver that breaks every rule: what the fuzz targets and the tests of hostile drivers share.
//!
//! 1. Any bytes are a driver's actions ([`drive`]); the same bytes are the same actions.
//! 2. Guest RAM lies between canaries: what a device writes outside of it is seen.
//! 3. After any actions a driver that keeps the rules gets its request answered, by this device and by another on the same
//!    bus. Nothing waits for ever: each wait has a deadline, whose end is a panic.
//! 4. What was saved after any actions is loaded, and saves the same bytes again. What was changed on its way is loaded or
//!    refused by a name; then, too, a driver that keeps the rules is served.
//!
//! `source` makes choices out of bytes, `ram` is guest memory, `subject` the device that is mistreated, `machine` the bus
//! that it is on and the driver that keeps the rules, `actions` the one that does not, `changed` what becomes of state, `monitor` what a client of
//! the monitor is answered; `net` stands for a network, `vhost` for the kernel behind a vhost device.

#![allow(clippy::unwrap_used, reason = "this is a test")]

mod actions;
mod changed;
mod machine;
mod monitor;
mod net;
mod ram;
#[cfg(test)]
mod rules;
mod source;
mod subject;
#[cfg(test)]
mod tests;
mod vhost;

pub use self::actions::{drive, drive_pci, drive_transport};
pub use self::changed::{load_changed, read_state};
pub use self::monitor::answer_client;
pub use self::subject::Kind;
#[cfg(test)]
pub(crate) use self::vhost::Double;
