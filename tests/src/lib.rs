//! The test harness.

pub mod bench;
pub mod guests;
pub mod harness;
pub mod lab;
