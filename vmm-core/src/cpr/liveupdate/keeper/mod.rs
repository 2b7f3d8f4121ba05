//! The process that a saved guest waits with.
//!
//! 1. It holds the session and the guest's memory, and hands duplicates of the memory to whoever of its own user asks, at a
//!    socket in the runtime directory. It decides nothing: who may run the guest is told by the ownership word in that memory.
//! 2. It ends when the guest is claimed; or when whoever made it has ended and the guest was not given up, or was taken back.
//! 3. Else it lives until the kexec, or is killed: it does not heed the signals that ask to end, and its name begins with `@`, by
//!    which systemd spares it at the very end, if it is root's (<https://systemd.io/ROOT_STORAGE_DAEMONS/>). It says nothing
//!    anywhere: a log that nobody reads must not end it.
//! 4. One that took a guest out of the kernel before this one has this one preserve it for the next, if nobody claims it soon.
//!
//! `start` makes one, `serve` is what it does, `visit` asks it, `passing` is how memory goes from one to the other.

mod passing;
mod serve;
mod start;
mod visit;

use std::path::PathBuf;

pub(super) use self::serve::is_over;
pub use self::serve::{Numbers, ignore_signals, serve};
pub use self::start::Keeper;
pub(super) use self::start::start;
pub use self::visit::{Visit, ask, is_there};
use crate::monitor::paths;

/// Where the keeper of a guest listens.
fn socket_of(guest: &str) -> PathBuf {
    paths::runtime_dir().join(format!("{guest}.kept"))
}
