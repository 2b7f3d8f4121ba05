//! The vCPU: its thread, how it is stopped, and its state.

pub mod kick;
pub mod thread;
