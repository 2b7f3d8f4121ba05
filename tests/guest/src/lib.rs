//! What the test program inside a Linux guest and whoever watches its console agree on.
//!
//! 1. [`frame`]: every byte on the console belongs to a line that is numbered and checksummed.
//! 2. [`stream`]: a reader that says which lines were lost, repeated or damaged.
//! 3. [`status`]: the figures that the guest answers `STATUS?` with.
//! 4. [`kernel_log`]: which kernel messages tell that a guest noticed something.
//! 5. [`early`]: what any init does first.
//! 6. [`link`], [`message`]: a network interface, and what is sent over it.
//! 7. [`measure`]: what it is asked to measure, and what it answers.
//! 8. [`rom`]: what PCI devices have in their ROMs.

pub mod early;
pub mod frame;
pub mod kernel_log;
pub mod link;
pub mod measure;
pub mod message;
pub mod rom;
pub mod status;
pub mod stream;
