//! Bare-metal test guests: a few hundred instructions that start at the reset vector of a ROM image.
//!
//! 1. The same bytes run under this VMM's `--firmware` and under QEMU's `-bios`, and as a kernel under `--kernel`.
//! 2. What a guest knows it writes to RAM at fixed addresses ([`layout`]), so that whoever maps the RAM sees it.
//! 3. A guest checks itself: the first thing that is wrong stops that vCPU and is named in its area.

mod elf;
pub mod layout;
mod rom;

pub use self::rom::{Guest, Hold, Mode, Work};
