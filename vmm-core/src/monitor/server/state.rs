//! The monitor on its way to another process.

use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt};
use serde::{Deserialize, Serialize};

use super::connection::{Connection, MAX_OUTPUT};
use super::socket::{self, Listener};
use super::{MAX_CLIENTS, MonitorError};
use crate::cpr::fds::{FdError, FdName, FdTable};
use crate::cpr::format::{Section, SectionKind};
use crate::monitor::framing::MAX_VALUE;

/// What goes with the descriptors `monitor.listen` and `monitor.client`, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonitorState {
    /// The paths of the listening sockets, as bytes.
    pub listeners: Vec<Vec<u8>>,
    /// The connected clients.
    pub clients: Vec<MonitorClientState>,
}

impl Section for MonitorState {
    const KIND: SectionKind = SectionKind::Monitor;
    const VERSION: u16 = 1;
    const OLDEST: u16 = 1;
}

/// What is under way with one client.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonitorClientState {
    /// Whether it has been past `qmp_capabilities`.
    pub negotiated: bool,
    /// Whether what it sends up to the next newline belongs to something malformed.
    pub skipping: bool,
    /// What it sent and was not answered.
    pub pending_input: Vec<u8>,
    /// What it is to be told and has not read.
    pub pending_output: Vec<u8>,
}

fn listener_name(n: usize) -> FdName {
    FdName::new("monitor.listen", n as u32)
}

fn client_name(n: usize) -> FdName {
    FdName::new("monitor.client", n as u32)
}

pub(super) fn export<'a>(
    listeners: &[Listener],
    clients: impl Iterator<Item = &'a Connection>,
    fds: &mut FdTable,
) -> Result<MonitorState, MonitorError> {
    let mut state = MonitorState::default();
    for (n, listener) in listeners.iter().enumerate() {
        fds.insert_dup(listener_name(n), listener.socket.as_fd())?;
        state.listeners.push(listener.path.as_os_str().as_bytes().to_vec());
    }
    for (n, client) in clients.enumerate() {
        fds.insert_dup(client_name(n), client.as_fd())?;
        state.clients.push(client.state());
    }
    Ok(state)
}

pub(super) fn adopt(
    state: MonitorState,
    fds: &mut FdTable,
) -> Result<(Vec<Listener>, Vec<Connection>), MonitorError> {
    if state.clients.len() > MAX_CLIENTS {
        return Err(MonitorError::State {
            found: format!("{} clients", state.clients.len()),
            expected: format!("at most {MAX_CLIENTS}"),
        });
    }
    let mut listeners = Vec::new();
    for (n, path) in state.listeners.into_iter().enumerate() {
        let fd = take_socket(fds, listener_name(n), true)?;
        listeners.push(Listener::new(fd, PathBuf::from(std::ffi::OsString::from_vec(path))));
    }
    let mut clients = Vec::new();
    for (n, client) in state.clients.into_iter().enumerate() {
        // One read may come on top of a value that is almost as long as it may be.
        if client.pending_input.len() > 2 * MAX_VALUE || client.pending_output.len() > MAX_OUTPUT {
            return Err(MonitorError::State {
                found: format!(
                    "client {n} with {} bytes in and {} bytes out",
                    client.pending_input.len(),
                    client.pending_output.len()
                ),
                expected: format!("at most {} and {MAX_OUTPUT}", 2 * MAX_VALUE),
            });
        }
        let name = client_name(n);
        let stream = UnixStream::from(take_socket(fds, name.clone(), false)?);
        let peer = socket::peer_of(&stream).map_err(|source| FdError::Io {
            name,
            doing: "asking who its peer is",
            source,
        })?;
        clients.push(Connection::resume(stream, peer, client));
    }
    Ok((listeners, clients))
}

/// Takes a descriptor that must be a UNIX socket, listening or not, and makes it non-blocking.
fn take_socket(
    fds: &mut FdTable,
    name: FdName,
    listening: bool,
) -> Result<std::os::fd::OwnedFd, MonitorError> {
    use std::os::fd::AsRawFd;
    let fd = fds.take(&name)?;
    let kind = |listening| if listening { "a listening UNIX socket" } else { "a connected UNIX socket" };
    let wrong = |found: &str| FdError::Wrong {
        name: name.clone(),
        found: found.to_owned(),
        expected: kind(listening).to_owned(),
    };
    let address: SockaddrStorage = getsockname(fd.as_raw_fd()).map_err(|_| wrong("no socket"))?;
    if address.family() != Some(AddressFamily::Unix) {
        return Err(wrong("a socket of another family").into());
    }
    let found = getsockopt(&fd, sockopt::AcceptConn).map_err(|_| wrong("no socket"))?;
    if found != listening {
        return Err(wrong(kind(found)).into());
    }
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(true).map_err(|source| FdError::Io {
        name,
        doing: "making it non-blocking",
        source,
    })?;
    Ok(stream.into())
}
