//! The test harness.

pub mod guests;
pub mod harness;
pub mod lab;
