//! The entropy device (virtio 1.2, 5.4): its one queue is filled from the host's `getrandom`.
//!
//! 1. A request is filled at once and whole, up to [`MAX_REQUEST`] bytes: the host's generator does not block once it is
//!    seeded, and the device is not made before.
//! 2. It has no state of its own.

mod config;
mod device;

pub use self::config::RngConfig;
pub use self::device::{MAX_REQUEST, Rng};

#[cfg(test)]
mod tests;
