//! A listening UNIX socket, one client at a time.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};
use nix::sys::stat::{Mode, fchmod};

use super::backend::{Input, Output, read_from, write_to};

/// A listening UNIX socket, one client at a time.
#[derive(Debug)]
pub(super) struct Unix {
    pub(super) listener: UnixListener,
    pub(super) client: Option<Client>,
    path: PathBuf,
    /// Device and inode of the socket file: another process may have put its own in its place.
    inode: Option<(u64, u64)>,
}

#[derive(Debug)]
pub(super) struct Client {
    pub(super) stream: UnixStream,
    /// It takes no more output. What it sent before can still be read.
    deaf: bool,
    /// Nothing more comes from it.
    pub(super) ended: bool,
}

impl Client {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, deaf: false, ended: false }
    }

    /// Whether the other end is closed, whatever there is still to read.
    pub(super) fn is_gone(&self) -> bool {
        let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::empty())];
        let polled = poll(&mut fds, PollTimeout::ZERO);
        polled.is_ok() && fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
    }
}

impl Unix {
    /// Listens at a path, private to the user. The socket that a dead process left there is replaced.
    pub(super) fn listen(path: &Path) -> io::Result<Self> {
        let listener = match bind_at(path) {
            Err(nix::Error::EADDRINUSE) => {
                remove_stale(path)?;
                bind_at(path)?
            }
            other => other?,
        };
        listen(&listener, Backlog::new(8)?)?;
        Ok(Self::with(listener, None, path))
    }

    /// Around descriptors that have been checked.
    pub(super) fn with(listener: OwnedFd, client: Option<OwnedFd>, path: &Path) -> Self {
        let client = client.map(|fd| Client::new(fd.into()));
        Self { listener: listener.into(), client, path: path.into(), inode: inode_of(path) }
    }

    /// Accepts the next client, if one waits.
    pub(super) fn accept(&self) -> Option<Client> {
        match self.listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true).ok()?;
                Some(Client::new(stream))
            }
            Err(e) => {
                if e.kind() != io::ErrorKind::WouldBlock {
                    tracing::warn!("accepting a client on {}: {e}", self.path.display());
                }
                None
            }
        }
    }

    pub(super) fn read(&mut self, buf: &mut [u8]) -> Input {
        let Some(client) = self.client.as_mut().filter(|client| !client.ended) else { return Input::Nothing };
        let input = read_from(&mut &client.stream, buf);
        client.ended = matches!(input, Input::End);
        input
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Output {
        let Some(client) = self.client.as_mut().filter(|client| !client.ended && !client.deaf) else {
            return Output::Nobody;
        };
        let output = write_to(&mut &client.stream, bytes);
        client.deaf = matches!(output, Output::Nobody);
        output
    }

    /// Removes the socket file, if it is still this one's.
    pub(super) fn unlink(&self) {
        if self.inode.is_some() && self.inode == inode_of(&self.path) {
            // Nobody is helped by hearing that a file which should go is gone.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn inode_of(path: &Path) -> Option<(u64, u64)> {
    let meta = fs::symlink_metadata(path).ok()?;
    meta.file_type().is_socket().then(|| (meta.dev(), meta.ino()))
}

fn bind_at(path: &Path) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // The file takes the mode that the socket has when it is bound: at no time can others connect.
    fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd)
}

fn remove_stale(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"));
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match connect(probe.as_raw_fd(), &UnixAddr::new(path)?) {
        Err(nix::Error::ECONNREFUSED) => fs::remove_file(path),
        Ok(()) | Err(nix::Error::EAGAIN) => {
            Err(io::Error::new(io::ErrorKind::AddrInUse, "another process is listening there"))
        }
        Err(e) => Err(e.into()),
    }
}
