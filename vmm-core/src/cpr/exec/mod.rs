//! `cpr-exec`: the process executes its new binary in place.
//!
//! 1. [`probe`]: the new binary is asked, as a child, whether it could; a binary that cannot is found out while the guest runs.
//! 2. [`depart`]: the old image stops the guest, seals its state in a memfd, keeps the descriptors open and executes.
//! 3. [`arrive`]: the new image adopts, loads and claims; [`fallback`]: or executes the old binary again with the same state.

pub mod arrive;
pub mod command;
pub mod depart;
pub mod fallback;
pub mod inherit;
pub mod probe;
pub mod state;
