//! The lock on an image: one user who writes, or many who read.
//!
//! The protocol: an open-file-description lock (fcntl(2), F_OFD_SETLK) on the whole file, bytes 0 to infinity: a write
//! lock by who writes, a read lock by who only reads. It conflicts with a POSIX or OFD lock that any other program
//! takes on any byte, unless both only read.
//!
//! 1. The lock belongs to the open file description, not to a process: it goes where the descriptor goes (SCM_RIGHTS,
//!    `execve`) and is let go with the last duplicate. So between source and target it is never free, and a source
//!    that takes its guest back has it because it never gave it up.
//! 2. Over `cpr-reboot` no process lives to hold it. What takes its place is the image's identity
//!    ([`super::ImageIdentity`]): who wrote to the image in between is noticed, though not kept out.
//! 3. For a block device the lock is on the device's node, not on the device: two nodes of one device are not one.
//!    Opening it exclusively (O_EXCL) also keeps out mounts and other exclusive users, by whatever node.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use nix::fcntl::{FcntlArg, fcntl};

/// Who holds a lock, as far as can be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A process: its pid and its name.
    Process(i32, String),
    /// One that is not to be seen from here: another user's, or in another PID namespace.
    Unseen,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(pid, name) => write!(f, "process {pid} ({name})"),
            Self::Unseen => f.write_str("a process that cannot be seen from here"),
        }
    }
}

/// Takes the lock without waiting; `Ok(Some(…))` names who holds it. Having it already is no error.
pub(super) fn acquire(file: &File, write: bool) -> io::Result<Option<Holder>> {
    let mut lock = whole_file(write);
    match fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&lock)) {
        Ok(_) => Ok(None),
        Err(nix::Error::EAGAIN | nix::Error::EACCES) => {
            fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut lock))?;
            Ok(Some(holder(file, lock.l_pid)?))
        }
        Err(e) => Err(e.into()),
    }
}

fn whole_file(write: bool) -> libc::flock {
    let kind = if write { libc::F_WRLCK } else { libc::F_RDLCK };
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 }
}

/// Finds out who has the lock. The kernel tells the pid for a POSIX lock only; an OFD lock's descriptor is looked for
/// among those of all processes.
fn holder(file: &File, pid: i32) -> io::Result<Holder> {
    if pid > 0 {
        return Ok(process(pid));
    }
    let image = file.metadata()?;
    for entry in fs::read_dir("/proc")?.flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let Some((pid, descriptors)) = pid.zip(fs::read_dir(entry.path().join("fd")).ok()) else { continue };
        for descriptor in descriptors.flatten() {
            let same = fs::metadata(descriptor.path())
                .is_ok_and(|other| (other.dev(), other.ino()) == (image.dev(), image.ino()));
            let info = entry.path().join("fdinfo").join(descriptor.file_name());
            if same && fs::read_to_string(info).is_ok_and(|info| info.contains("\nlock:")) {
                return Ok(process(pid));
            }
        }
    }
    Ok(Holder::Unseen)
}

fn process(pid: i32) -> Holder {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Holder::Process(pid, name.trim_end().into())
}
