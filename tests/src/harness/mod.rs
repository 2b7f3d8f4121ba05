//! The harness: the product's vocabulary for tests.

pub mod bare;
pub mod ram;
