//! `cpr-reboot`: state to a file, or to memory that the next kernel finds, RAM left in place; a later process loads it ([`Place`]).
//!
//! 1. The file is there whole or not at all ([`mod@file`]); room for it is reserved before the guest stops.
//! 2. RAM and file are tied to each other ([`stamp`]): RAM of another guest, or RAM that has run on, is refused.
//! 3. A file can be loaded once: who loads it claims the guest by the ownership word beside the RAM.
//! 4. Where RAM would not outlive its process, it goes into the file if that is asked for ([`copy`]).
//! 5. Or the kernel preserves it for the next one, and the state with it ([`liveupdate`](super::liveupdate)).
//! 6. Several guests may have parts of one DAX device ([`parts`]).
//! 7. [`save`] and [`load`] are the two sides; `medium` is what the first one saves to, and `found` what the second one finds there.
//!    [`waiting`] says whether there is anything to load, [`mod@error`] why it is not, and `outage` how long its guest stood.

pub mod copy;
pub mod error;
pub mod file;
mod found;
pub mod load;
mod medium;
mod outage;
pub mod parts;
mod place;
pub mod save;
pub mod stamp;
pub mod waiting;

pub use self::place::{Place, state_file};
