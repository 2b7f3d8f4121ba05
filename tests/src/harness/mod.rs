//! The harness: the product's vocabulary for tests.
//!
//! 1. What a test starts are real processes ([`process`]), in a directory of their own ([`host`]); they end with it.
//! 2. A guest is judged from outside, by its RAM ([`ram`], [`watch`]), never by what the product says of it alone.
//! 3. Every wait has a deadline, and its failure says what was waited for.
//!
//! [`vm`] is a guest of `cpr-load`, [`bare`] the smallest machine without it, [`qemu`] a guest of QEMU; [`proxy`] stands
//! between the two sides of a transfer; [`random`] chooses moments; [`runner`] runs tests and counts what is skipped.

pub mod bare;
pub mod host;
pub mod process;
pub mod proxy;
pub mod qemu;
pub mod ram;
pub mod random;
pub mod runner;
pub mod vm;
pub mod watch;
