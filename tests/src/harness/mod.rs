//! The harness: the product's vocabulary for tests.

pub mod bare;
pub mod process;
pub mod qemu;
pub mod ram;
pub mod runner;
pub mod watch;
