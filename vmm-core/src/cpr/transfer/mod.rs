//! `cpr-transfer`: to another process on the same host, through a UNIX socket.
//!
//! 1. [`frame`] is the bytes, [`channel`] moves them with deadlines, [`message`] says what they mean.
//! 2. [`source`] and [`target`] are the two sides; the order of their steps is in [`message`].
//! 3. Who owns the guest is decided by the ownership word alone, never by a message.

pub mod channel;
pub mod frame;
pub mod message;
pub mod source;
pub mod target;
