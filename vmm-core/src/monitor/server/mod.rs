//! The server: sockets, clients, and their life in the main thread's event loop.
//!
//! 1. Clients are served in turn, each a bounded amount at a time; none can hold up another or the machine.
//! 2. The listener, and in exec mode the connected clients with what is under way on them, live on in the next image
//!    ([`MonitorServer::export`], [`MonitorServer::adopt`]).
//! 3. A socket file is removed at the end only by the process that still listens on it.
//!
//! `socket` binds and accepts, `connection` is one client's buffers, `state` the wire form for a handover.

mod connection;
mod socket;
mod state;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use self::connection::{Connection, Verdict};
use self::socket::Listener;
pub use self::socket::refuse_strangers;
pub(crate) use self::socket::{BindError, failed, listen, lock_directory};
pub use self::state::{MonitorClientState, MonitorState};
use super::control::Control;
use super::events::EventSender;
use crate::cpr::fds::{FdError, FdTable};

/// The most clients at a time.
pub const MAX_CLIENTS: usize = 128;

/// Why the monitor could not be set up or handed over.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// Somebody listens on the path.
    #[error("monitor socket {0}: another process listens on it; is the guest already there?")]
    InUse(String),
    /// There is something at the path that is no socket.
    #[error(
        "monitor socket {0}: there is a file of that name that is no socket; remove it or choose another path"
    )]
    NoSocket(String),
    /// A system call failed.
    #[error("monitor socket {path}: {doing}")]
    Io {
        /// The socket's path.
        path: String,
        /// What was being done.
        doing: &'static str,
        /// What the kernel answered.
        source: std::io::Error,
    },
    /// Saved state holds something that a monitor cannot be in.
    #[error("saved monitor: {found}; expected {expected}")]
    State {
        /// What the state says.
        found: String,
        /// What it may say.
        expected: String,
    },
    /// A named descriptor is missing or not what it claims to be.
    #[error(transparent)]
    Fd(#[from] FdError),
}

/// A QMP server. Add it to the main thread's `EventManager`.
pub struct MonitorServer {
    control: Arc<dyn Control>,
    events: EventSender,
    listeners: Vec<Listener>,
    clients: BTreeMap<RawFd, Connection>,
    /// Listeners that the event loop still watches and must let go of.
    released: Vec<Listener>,
}

impl MonitorServer {
    /// A server that listens nowhere yet. `events` is where the machine's events come from.
    pub fn new(control: Arc<dyn Control>, events: EventSender) -> Self {
        Self { control, events, listeners: Vec::new(), clients: BTreeMap::new(), released: Vec::new() }
    }

    /// Listens on a UNIX socket (mode 0600). A stale socket file is replaced; one that is listened on is refused.
    pub fn listen(&mut self, path: &Path) -> Result<(), MonitorError> {
        self.listeners.push(Listener::bind(path)?);
        self.events.wake();
        Ok(())
    }

    /// The listening socket, to be handed over; the first, where there are several.
    pub fn listener_fd(&self) -> Option<BorrowedFd<'_>> {
        self.listeners.first().map(|listener| listener.socket.as_fd())
    }

    /// Stops listening and leaves the socket files alone: another process has the sockets now. Clients stay connected.
    pub fn release_listeners(&mut self) {
        self.released.append(&mut self.listeners);
        self.events.wake();
    }

    /// Duplicates into `fds` what lives on elsewhere, and says what is under way on it: the listeners, and with `clients`
    /// (exec mode) the connected clients. This server stays as it is: if the handover fails, it goes on.
    ///
    /// Events emitted so far are in the clients' pending output.
    pub fn export(&mut self, clients: bool, fds: &mut FdTable) -> Result<MonitorState, MonitorError> {
        self.queue_events();
        state::export(&self.listeners, self.clients.values().filter(|_| clients), fds)
    }

    /// Takes over what another process exported. To be called once it may no longer use it itself.
    pub fn adopt(&mut self, state: MonitorState, fds: &mut FdTable) -> Result<(), MonitorError> {
        let (listeners, clients) = state::adopt(state, fds)?;
        self.listeners.extend(listeners);
        self.clients.extend(clients.into_iter().map(|client| (client.as_raw_fd(), client)));
        self.events.wake();
        Ok(())
    }

    /// The end: writes out what clients are still to be told, for at most `timeout`, and removes the socket files that are
    /// still this process's own.
    pub fn finish(&mut self, timeout: Duration) {
        self.queue_events();
        let deadline = Instant::now() + timeout;
        for client in self.clients.values_mut() {
            client.flush_until(deadline);
        }
        for listener in &self.listeners {
            listener.remove_file();
        }
    }

    /// Closes every connection.
    pub fn hang_up(&mut self) {
        self.clients.clear();
    }

    /// Forgets its sockets and its clients, who are another process's by now: nobody is told anything, and the socket
    /// files stay.
    pub fn abandon(&mut self) {
        self.release_listeners();
        self.hang_up();
    }

    /// Moves the events emitted so far to the clients' output.
    fn queue_events(&mut self) {
        for (at, event) in self.events.drain() {
            if event.needs_capability() && !self.control.migrate_capabilities().events {
                continue;
            }
            let message = event.to_json(at);
            for client in self.clients.values_mut().filter(|client| client.is_negotiated()) {
                client.queue(&message);
            }
        }
    }

    /// Watches what is new, lets go of what is released, writes what can be written, drops what is over.
    fn settle(&mut self, ops: &mut EventOps) {
        for listener in self.released.drain(..).filter(|listener| listener.watched) {
            if let Err(error) = ops.remove(Events::empty(&listener.socket)) {
                tracing::error!(%error, "monitor: a listener could not be let go of");
            }
        }
        for listener in self.listeners.iter_mut().filter(|listener| !listener.watched) {
            match ops.add(Events::new(&listener.socket, EventSet::IN)) {
                Ok(()) => listener.watched = true,
                Err(error) => tracing::error!(%error, "monitor: a listener could not be watched"),
            }
        }
        self.clients.retain(|_, client| match client.settle(ops) {
            Verdict::Stays => true,
            Verdict::Over(why) => {
                tracing::info!(client = %client.peer(), why, "monitor: client gone");
                client.unwatch(ops);
                false
            }
        });
    }

    fn accept(&mut self, fd: RawFd) {
        let Some(listener) = self.listeners.iter().find(|listener| listener.socket.as_raw_fd() == fd) else {
            return;
        };
        while let Some((stream, peer)) = listener.accept() {
            if self.clients.len() >= MAX_CLIENTS {
                tracing::warn!(%peer, "monitor: client refused: {MAX_CLIENTS} are connected already");
                continue;
            }
            tracing::debug!(%peer, "monitor: client connected");
            self.clients.insert(stream.as_raw_fd(), Connection::new(stream, peer));
        }
    }

    /// Serves one client: reads what is there (if `readable`), answers what is complete, unless a guest is just being taken in.
    fn serve(&mut self, fd: RawFd, readable: bool) {
        // What it sends, and that it hangs up, waits where it is.
        if self.control.is_taking_in() {
            return;
        }
        if let Some(client) = self.clients.get_mut(&fd)
            && readable
        {
            client.read();
        }
        while let Some(client) = self.clients.get_mut(&fd)
            && let Some(answer) = client.answer_next(&*self.control)
        {
            // What a command brought about is told before its answer, as QEMU does.
            self.queue_events();
            if let Some(client) = self.clients.get_mut(&fd) {
                client.queue(&answer);
            }
        }
    }
}

impl MutEventSubscriber for MonitorServer {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let fd = events.fd();
        if fd == self.events.ready().as_raw_fd() {
            self.queue_events();
            // Clients that were just adopted may have complete requests waiting.
            for fd in self.clients.keys().copied().collect::<Vec<_>>() {
                self.serve(fd, false);
            }
        } else if self.clients.contains_key(&fd) {
            self.serve(fd, events.event_set() != EventSet::OUT);
        } else {
            self.accept(fd);
        }
        self.settle(ops);
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(self.events.ready(), EventSet::IN)) {
            tracing::error!(%error, "monitor: events cannot be watched");
        }
        self.settle(ops);
    }
}
