//! The bus with a function that remembers what it is told, and the table of vectors without KVM.

mod moves;
mod state;
mod vectors;

use super::fake;
