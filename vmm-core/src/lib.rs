//! The machine behind `cpr-load`, and everything that CPR (CheckPoint and Restart) means.
//!
//! 1. At every instant at most one process may run a guest (`cpr::ownership`).
//! 2. Guest memory stays where it is; only kilobytes of state and the named descriptors move.
//! 3. Until the target has claimed the guest, every failure leaves it running in the source.
//!
//! Data flows one way: commands → [`monitor`] → [`cpr`] → [`machine`] → [`devices`], [`vcpu`], [`memory`].

pub mod config;
pub mod cpr;
pub mod devices;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod machine;
pub mod memory;
pub mod monitor;
pub mod owner;
pub mod priority;
#[cfg(test)]
mod testing;
pub mod vcpu;
pub mod x86;
