//! A pseudo-terminal: this process holds the controlling side, whoever opens the path is the reader.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

use super::backend::{Input, Output, read_from, write_to};

/// The controlling side of a pseudo-terminal.
#[derive(Debug)]
pub(super) struct Pty {
    pub(super) master: File,
    pub(super) path: PathBuf,
}

impl Pty {
    /// A new pseudo-terminal, raw.
    pub(super) fn open() -> io::Result<Self> {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let master = posix_openpt(flags)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let mut termios = tcgetattr(&master)?;
        cfmakeraw(&mut termios);
        tcsetattr(&master, SetArg::TCSANOW, &termios)?;
        let path = PathBuf::from(ptsname_r(&master)?);
        // Only after the first close does the kernel say that nobody has it open.
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&path)?;
        Ok(Self { master: OwnedFd::from(master).into(), path })
    }

    /// Around a descriptor that has been checked.
    pub(super) fn with(master: OwnedFd) -> io::Result<Self> {
        let path = path_of(&master)?;
        Ok(Self { master: master.into(), path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn read(&mut self, buf: &mut [u8]) -> Input {
        match read_from(&mut &self.master, buf) {
            // EIO: nobody has it open. Somebody will.
            Input::End => Input::Nothing,
            other => other,
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Output {
        let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLOUT)];
        let polled = poll(&mut fds, PollTimeout::ZERO);
        if polled.is_ok() && fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP)) {
            return Output::Nobody;
        }
        write_to(&mut &self.master, bytes)
    }
}

/// The path of the other side.
pub(super) fn path_of(master: &OwnedFd) -> io::Result<PathBuf> {
    let master = master.try_clone()?;
    // SAFETY: the descriptor is owned and open; a `PtyMaster` only names what the calls on it are for, and one that
    // is no pseudo-terminal makes `ptsname_r` fail.
    let master = unsafe { PtyMaster::from_owned_fd(master) };
    Ok(ptsname_r(&master)?.into())
}
