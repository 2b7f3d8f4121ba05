//! `cpr-exec`: the process executes its new binary in place, and its guest does not wait for it.
//!
//! ```text
//! this process                       stopover (this binary, a child)
//!   guest  ───────── transfer ─────────▶  guest
//!   execve(new binary)                    guest runs
//!   guest  ◀──────── transfer ──────────  ends
//! ```
//!
//! 1. [`probe`]: the new binary is asked, as a child, whether it could; one that cannot is found out before anything
//!    is touched.
//! 2. The guest moves to a [`stopover`], a child that runs the binary that this process runs now.
//! 3. [`depart`]: this process executes the new binary. Only its PID and three descriptors are left of it.
//! 4. [`arrive`]: the new image takes the guest from the stopover; [`fallback`]: or it executes the old binary again,
//!    which takes it.
//! 5. The guest is never in a process that is being replaced. Whatever becomes of the new image, the guest runs: at the
//!    worst it stays where it is, in the stopover.

pub mod arrive;
pub mod child;
pub mod command;
pub mod depart;
pub mod fallback;
pub mod inherit;
pub mod probe;
pub mod state;
pub mod stopover;
