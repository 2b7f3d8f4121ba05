//! The process that a saved guest waits with.
//!
//! 1. It holds the session and the guest's memory, and hands duplicates of the memory to whoever of its own user asks, at a
//!    socket in the runtime directory. It decides nothing: who may run the guest is told by the ownership word in that memory.
//! 2. It ends when the guest is claimed; or when whoever made it has ended and the guest was not given up, or was taken back.
//! 3. Else it lives until the kexec, or is killed: it does not heed the signals that ask to end, and its name begins with `@`, by
//!    which systemd spares it on the way down (<https://systemd.io/ROOT_STORAGE_DAEMONS/>).
//!
//! `start` makes one, `serve` is what it does, `visit` asks it.

mod serve;
mod start;
mod visit;

use std::path::PathBuf;

pub use self::serve::{Numbers, ignore_signals, serve};
pub use self::start::Keeper;
pub(super) use self::start::{listen, start};
pub use self::visit::{Visit, ask, is_there};
use crate::monitor::paths;

/// Where the keeper of a guest listens.
fn socket_of(guest: &str) -> PathBuf {
    paths::runtime_dir().join(format!("{guest}.kept"))
}
