//! The lock on a backing that has a path.
//!
//! It is an open-file-description lock on the whole file, so it goes where the descriptor goes: over SCM_RIGHTS and
//! `execve`, and away when the last duplicate is closed.

use std::fs::File;
use std::io;

use nix::fcntl::{FcntlArg, fcntl};

/// Takes the lock without waiting. `Ok(false)` if another open file description holds it.
pub(crate) fn acquire(file: &File) -> io::Result<bool> {
    match set(file, libc::F_WRLCK) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        other => other.map(|()| true),
    }
}

/// Lets go of the lock, for every duplicate of the descriptor.
pub(super) fn release(file: &File) -> io::Result<()> {
    set(file, libc::F_UNLCK)
}

fn set(file: &File, kind: i32) -> io::Result<()> {
    // A length of 0 is to the end of the file, however far that moves.
    let lock =
        libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 };
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock))?;
    Ok(())
}
