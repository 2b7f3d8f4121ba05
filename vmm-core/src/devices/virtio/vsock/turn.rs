//! How it is known that the process that a guest comes from has let go of its CID: a pipe, whose writing end that process
//! closes after its vhost-vsock, or the kernel when it ends.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::cpr::fds::{FdError, FdName, FdTable};

/// This process's own turn.
pub(super) struct Turn {
    /// For who comes next.
    next: OwnedFd,
    /// Closed when it is over.
    open: Option<OwnedFd>,
}

impl Turn {
    pub(super) fn begin() -> nix::Result<Self> {
        let (next, open) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        Ok(Self { next, open: Some(open) })
    }

    /// Lets who comes next hear the end of it.
    pub(super) fn register(&self, name: FdName, fds: &mut FdTable) -> Result<(), FdError> {
        fds.insert_dup(name, self.next.as_fd())
    }

    pub(super) fn end(&mut self) {
        self.open = None;
    }
}

/// Another process's turn, which is to end.
pub(super) struct Before(OwnedFd);

impl Before {
    /// Takes what that process has registered as `name`.
    pub(super) fn adopt(name: &FdName, fd: OwnedFd) -> Result<Self, FdError> {
        let file = File::from(fd);
        let meta = file.metadata();
        let meta =
            meta.map_err(|source| FdError::Io { name: name.clone(), doing: "asking what it is", source })?;
        if meta.file_type().is_fifo() {
            return Ok(Self(file.into()));
        }
        Err(FdError::Wrong { name: name.clone(), found: "something else".into(), expected: "a pipe".into() })
    }

    /// Waits for the end of it, so long at most.
    pub(super) fn wait(&self, most: Duration) {
        let most = PollTimeout::try_from(most).unwrap_or(PollTimeout::MAX);
        // Whatever comes of it: the kernel says whether the CID is free.
        let _ = poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::empty())], most);
    }
}
