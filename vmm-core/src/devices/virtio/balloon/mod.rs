//! The memory balloon (virtio 1.2, 5.5): RAM that the guest does not use goes back to the host.
//!
//! 1. What the driver inflates with, or reports as free, is punched out of the file that the RAM is: the mapping is shared,
//!    and so the page is gone for every process that has it.
//! 2. Only whole pages of the RAM's backing are punched: with huge pages, what of a request does not make up one stays.
//! 3. Deflating needs nothing: a page comes back, as zeros, when it is touched.
//! 4. While it is held ([`Balloon::hold`]) no page of RAM changes by it; requests wait in their queues.
//!
//! `device.rs` is the device, `punch.rs` gives pages back, `state.rs` is the wire form.

mod config;
mod device;
mod punch;
mod state;

pub use self::config::BalloonConfig;
pub use self::device::Balloon;
pub use self::state::BalloonState;

#[cfg(test)]
mod tests;
