//! Binding and accepting.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr, sockopt};
use nix::sys::stat::{Mode, fchmod};

use super::MonitorError;

/// A listening socket and the file by which it is found.
pub(super) struct Listener {
    pub socket: UnixListener,
    pub path: PathBuf,
    /// Whether the event loop knows it.
    pub watched: bool,
}

/// Who is at the other end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    pub uid: u32,
    pub pid: i32,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {} uid {}", self.pid, self.uid)
    }
}

impl Peer {
    fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = socket::getsockopt(stream, sockopt::PeerCredentials)?;
        Ok(Self { uid: credentials.uid(), pid: credentials.pid() })
    }

    fn may_connect(self) -> bool {
        self.uid == 0 || self.uid == nix::unistd::geteuid().as_raw()
    }
}

impl Listener {
    pub fn bind(path: &Path) -> Result<Self, MonitorError> {
        let name = || path.display().to_string();
        listen(path).map(|socket| Self::new(socket, path.to_owned())).map_err(|error| match error {
            BindError::InUse => MonitorError::InUse(name()),
            BindError::NoSocket => MonitorError::NoSocket(name()),
            BindError::Io { doing, source } => MonitorError::Io { path: name(), doing, source },
        })
    }

    pub fn new(socket: OwnedFd, path: PathBuf) -> Self {
        Self { socket: socket.into(), path, watched: false }
    }

    /// The next client that may connect; others are closed and logged.
    pub fn accept(&self) -> Option<(UnixStream, Peer)> {
        loop {
            let stream = match self.socket.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    tracing::warn!(%error, "monitor: a client could not be accepted");
                    return None;
                }
            };
            match stream.set_nonblocking(true).and_then(|()| Peer::of(&stream)) {
                Ok(peer) if peer.may_connect() => return Some((stream, peer)),
                Ok(peer) => tracing::warn!(%peer, "monitor: client refused: neither root nor our own user"),
                Err(error) => tracing::warn!(%error, "monitor: client refused: its user is not known"),
            }
        }
    }

    /// Removes the socket's file.
    pub fn remove_file(&self) {
        if let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %self.path.display(), "monitor: its socket file stays behind");
        }
    }
}

/// Why nobody can listen at a path.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    /// Somebody does.
    #[error("another process listens there")]
    InUse,
    /// There is something that is no socket.
    #[error("there is a file of that name that is no socket; remove it")]
    NoSocket,
    /// A system call failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
}

/// The error of a call that failed.
pub(crate) fn failed<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> BindError {
    move |source| BindError::Io { doing, source: source.into() }
}

/// Listens at a path, which only our own user and root reach, in the place of a process that does no more.
pub(crate) fn listen(path: &Path) -> Result<OwnedFd, BindError> {
    // Two processes that start at once must not both find the file stale.
    let _lock = lock_directory(path).map_err(failed("locking its directory"))?;
    clear(path)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd =
        socket::socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(failed("making it"))?;
    // The file gets the mode of the socket, so there is no moment at which others could connect.
    fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR).map_err(failed("setting its mode"))?;
    let address = UnixAddr::new(path).map_err(failed("reading its path"))?;
    socket::bind(fd.as_raw_fd(), &address).map_err(failed("binding it"))?;
    socket::listen(&fd, Backlog::MAXCONN).map_err(failed("listening on it"))?;
    Ok(fd)
}

/// Removes a socket file that nobody listens on.
fn clear(path: &Path) -> Result<(), BindError> {
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(BindError::NoSocket);
    }
    match UnixStream::connect(path) {
        Err(error) if error.raw_os_error() == Some(Errno::ECONNREFUSED as i32) => {
            std::fs::remove_file(path).map_err(failed("removing the stale file"))
        }
        _ => Err(BindError::InUse),
    }
}

/// Keeps others from giving names to sockets beside this one, and from taking them away.
pub(crate) fn lock_directory(path: &Path) -> io::Result<Flock<std::fs::File>> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    Flock::lock(std::fs::File::open(directory)?, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
}

/// Refuses whoever is neither root nor our own user.
pub fn refuse_strangers(stream: &UnixStream) -> io::Result<()> {
    let peer = Peer::of(stream)?;
    if peer.may_connect() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{peer} is neither root nor our own user")))
}

/// Who is at the other end of a socket that was handed over.
pub(super) fn peer_of(stream: &UnixStream) -> io::Result<Peer> {
    Peer::of(stream)
}
