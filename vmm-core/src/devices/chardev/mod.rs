//! Back ends of character devices: where a serial port's bytes come from and go to.
//!
//! 1. Nothing here waits. Output that cannot be written at once is queued, up to [`QUEUE`] bytes; from then on
//!    [`Chardev::room`] is false and the device holds the guest back. What a guest sends all the same is dropped past
//!    a little headroom, and the log says how much.
//! 2. Without a reader (no client, no open terminal) output is dropped. When a reader leaves, what it had not read is
//!    dropped, and the log says how much.
//! 3. The queue is saved state: over a handover no byte is lost and none is sent twice. After a reboot there is no
//!    reader yet; the queue is kept for the first one that comes.
//! 4. Descriptors are named (`serial0.listen`, `.client`, `.pty`, `.file`, `.in`, `.out`), and checked when adopted.
//! 5. From [`Chardev::register`] to [`Chardev::resume`] new clients wait in the listening socket, so that those that
//!    were named stay those that are there. Between [`Chardev::quiesce`] and [`Chardev::resume`] no byte is read
//!    from or written to the outside.
//! 6. Descriptors are watched edge-triggered, and every wake looks at everything: what cannot be served now costs
//!    nothing until it can.
//!
//! `device.rs` is what a device talks to, `backend.rs` the kinds of back end, with one file for each that is more
//! than a file; `check.rs` looks at adopted descriptors; `state.rs` is the wire form.

mod backend;
mod check;
mod device;
mod pty;
mod state;
mod stdio;
mod unix;

pub use self::device::{Chardev, QUEUE};
pub use self::state::{ChardevState, TerminalState};
