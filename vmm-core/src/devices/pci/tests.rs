//! The bus with a function that remembers what it is told, and the table of vectors without KVM.

pub(crate) mod fake;
mod moves;
mod state;
mod vectors;
