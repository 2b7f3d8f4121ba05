//! A back end as the device in front of it sees it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use event_manager::{EventOps, EventSet, Events};
use nix::errno::Errno;
use vmm_sys_util::eventfd::EventFd;

use super::ChardevState;
use super::backend::{Backend, Input, Output};
use crate::config::ChardevConfig;
use crate::cpr::fds::{FdError, FdName, FdTable};
use crate::devices::{DeviceError, eventfd};

/// Bytes of output that are queued before the guest is held back.
pub const QUEUE: usize = 64 << 10;
/// What a guest may send on top, which has not yet noticed that it is held back.
const HEADROOM: usize = 4 << 10;

/// A back end: where a device's bytes come from and go to.
#[derive(Debug)]
pub struct Chardev {
    id: String,
    backend: Backend,
    queue: VecDeque<u8>,
    /// Whether there is somebody to read output.
    attached: bool,
    /// Whether it was opened again, so that no client came along.
    reopened: bool,
    /// The saved state has a client that did not come along; told on until this side runs.
    absent: bool,
    stopped: bool,
    /// New clients wait.
    held: bool,
    /// Whether the socket file and the terminal are this process's to tidy up.
    owner: bool,
    lost: u64,
    kick: EventFd,
}

impl Chardev {
    /// Opens a back end for a cold boot. It takes and gives bytes from the beginning.
    pub fn open(id: &str, config: &ChardevConfig) -> Result<Self, DeviceError> {
        let backend = Backend::open(config).map_err(failed(id, || format!("opening {config}")))?;
        let chardev = Self::with(id, backend, false)?;
        if let Some(path) = chardev.pty_path() {
            tracing::info!("{id} is on {}", path.display());
        }
        Ok(chardev)
    }

    /// Opens a back end again by its configuration (`cpr-reboot`). It stands still until [`Self::resume`].
    pub fn reopen(id: &str, config: &ChardevConfig) -> Result<Self, DeviceError> {
        let mut chardev = Self::open(id, config)?;
        (chardev.stopped, chardev.held, chardev.reopened) = (true, true, true);
        Ok(chardev)
    }

    /// Takes a back end's descriptors over. It stands still until [`Self::resume`].
    pub fn adopt(id: &str, config: &ChardevConfig, fds: &mut FdTable) -> Result<Self, DeviceError> {
        Self::with(id, Backend::adopt(id, config, fds)?, true)
    }

    fn with(id: &str, backend: Backend, stopped: bool) -> Result<Self, DeviceError> {
        let kick = eventfd::make(id)?;
        let attached = match &backend {
            Backend::Unix(unix) => unix.client.is_some(),
            Backend::Pty(_) => false,
            Backend::Null | Backend::Stdio(_) | Backend::File(_) => true,
        };
        Ok(Self {
            id: id.into(),
            backend,
            queue: VecDeque::new(),
            attached,
            reopened: false,
            absent: false,
            stopped,
            held: stopped,
            owner: !stopped,
            lost: 0,
            kick,
        })
    }

    /// The device's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The path of the pseudo-terminal, if it is one.
    pub fn pty_path(&self) -> Option<&Path> {
        match &self.backend {
            Backend::Pty(pty) => Some(pty.path()),
            _ => None,
        }
    }

    /// Whether the guest may send. When it may not, a wake follows as soon as it may.
    pub fn room(&self) -> bool {
        !self.attached || self.queue.len() < QUEUE
    }

    /// Whether that many bytes can be sent now without one being lost. When not, a wake follows as soon as there is more
    /// room.
    pub fn takes(&self, len: usize) -> bool {
        !self.attached || self.queue.is_empty() || self.queue.len() + len <= QUEUE
    }

    /// Whether somebody is at the other end, as far as that can be known.
    pub fn is_connected(&self) -> bool {
        match &self.backend {
            Backend::Unix(unix) => {
                unix.client.as_ref().is_some_and(|client| !client.ended && !client.is_gone())
            }
            Backend::Null | Backend::Stdio(_) | Backend::File(_) | Backend::Pty(_) => true,
        }
    }

    /// Whether all that a client had to say has been read, and it is to be let go of ([`Self::service`]).
    pub fn has_ended(&self) -> bool {
        matches!(&self.backend, Backend::Unix(unix) if unix.client.as_ref().is_some_and(|client| client.ended))
    }

    /// Sends bytes, or queues them, or drops them where there is nobody to read them.
    pub fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.stopped && self.queue.is_empty() {
            let outcome = self.backend.write(bytes);
            match self.done(outcome, bytes.len()) {
                Some(sent) => bytes = &bytes[sent..],
                None => break,
            }
        }
        if self.attached || self.stopped || !self.queue.is_empty() {
            let fits = bytes.len().min((QUEUE + HEADROOM).saturating_sub(self.queue.len()));
            self.queue.extend(&bytes[..fits]);
            self.lose(bytes.len() - fits, "its reader does not keep up");
        }
    }

    /// Reads what is there without waiting; 0 where there is nothing.
    pub fn read(&mut self, buf: &mut [u8]) -> usize {
        if self.stopped || buf.is_empty() {
            return 0;
        }
        match self.backend.read(buf) {
            Input::Bytes(n) => n,
            Input::Nothing | Input::End => 0,
        }
    }

    /// Watches the descriptors; called once, by the subscriber's `init`.
    pub fn watch(&self, ops: &mut EventOps) {
        if let Err(e) = ops.add(Events::new(&self.kick, EventSet::IN)) {
            tracing::error!("{}: watching its eventfd: {e}", self.id);
        }
        for (_, fd) in self.backend.descriptors() {
            watch(&self.id, &fd, ops);
        }
    }

    /// Wakes the subscriber.
    pub fn kick(&self) {
        // It can only fail when the counter is full, and then the subscriber is woken already.
        let _ = self.kick.write(1);
    }

    /// Takes back the wakes that led here. False while stopped: there is nothing to do.
    pub fn wake(&mut self) -> bool {
        let _ = self.kick.read();
        !self.stopped
    }

    /// Writes out what is queued, lets go of a client that is gone, accepts the next. Called at every wake, after
    /// reading.
    pub fn service(&mut self, ops: &mut EventOps) {
        if self.stopped {
            return;
        }
        self.flush();
        let Backend::Unix(unix) = &mut self.backend else { return };
        if let Some(client) = unix.client.take_if(|client| client.ended) {
            // Removed first: a duplicate elsewhere would keep it in the epoll set.
            let _ = ops.remove(Events::empty(&client.stream));
            self.detach();
        }
        self.accept(ops);
    }

    /// A client that is gone, but whose last input the guest does not take, makes way for the next.
    fn accept(&mut self, ops: &mut EventOps) {
        let Backend::Unix(unix) = &mut self.backend else { return };
        if self.held || unix.client.as_ref().is_some_and(|client| !client.is_gone()) {
            return;
        }
        let Some(client) = unix.accept() else { return };
        watch(&self.id, &client.stream, ops);
        if let Some(gone) = unix.client.replace(client) {
            tracing::warn!("{}: a client left input that the guest did not read; it is dropped", self.id);
            let _ = ops.remove(Events::empty(&gone.stream));
            self.detach();
        }
        self.attached = true;
        self.flush();
    }

    fn flush(&mut self) {
        while !self.queue.is_empty() {
            let (front, _) = self.queue.as_slices();
            let len = front.len();
            let outcome = self.backend.write(front);
            match self.done(outcome, len) {
                Some(sent) => drop(self.queue.drain(..sent)),
                None => return,
            }
        }
        if self.lost > 0 {
            tracing::warn!("{}: {} bytes of output were lost", self.id, self.lost);
            self.lost = 0;
        }
    }

    /// How many of `len` bytes are dealt with; none at present if nothing can be written.
    fn done(&mut self, outcome: Output, len: usize) -> Option<usize> {
        match outcome {
            Output::Sent(sent) => {
                self.attached = true;
                return Some(sent);
            }
            Output::Full => self.attached = true,
            Output::Nobody => self.detach(),
            Output::Failed(e) => {
                self.lose(len, &format!("it cannot be written: {e}"));
                return Some(len);
            }
        }
        None
    }

    fn lose(&mut self, bytes: usize, why: &str) {
        if bytes > 0 && self.lost == 0 {
            tracing::warn!("{}: output is being lost: {why}", self.id);
        }
        self.lost += bytes as u64;
    }

    fn detach(&mut self) {
        if self.attached && !self.queue.is_empty() {
            tracing::warn!("{}: its reader left; {} bytes of output are dropped", self.id, self.queue.len());
            self.queue.clear();
        }
        self.attached = false;
    }

    /// Stands still: what can be written at once is, the rest is state.
    pub fn quiesce(&mut self) {
        if !self.stopped {
            self.flush();
        }
        self.stopped = true;
        self.held = true;
    }

    /// Goes on, and lets new clients in. What was adopted is this process's own from here on.
    pub fn resume(&mut self) {
        self.owner = true;
        self.absent = false;
        self.stopped = false;
        self.held = false;
        self.kick();
    }

    /// Registers duplicates of the descriptors. From here to [`Self::resume`] new clients wait.
    pub fn register(&mut self, fds: &mut FdTable) -> Result<(), FdError> {
        self.held = true;
        for (what, fd) in self.backend.descriptors() {
            fds.insert_dup(FdName::new(format!("{}.{what}", self.id), 0), fd)?;
        }
        Ok(())
    }

    /// What the other side must know. Called while stopped.
    pub fn state(&self) -> ChardevState {
        let client = match &self.backend {
            Backend::Unix(unix) => unix.client.as_ref().is_some_and(|client| !client.ended),
            _ => false,
        };
        let terminal = match &self.backend {
            Backend::Stdio(stdio) => stdio.original.clone(),
            _ => None,
        };
        ChardevState { client: client || self.absent, output: self.queue.iter().copied().collect(), terminal }
    }

    /// Takes the other side's place. It stands still until [`Self::resume`].
    pub fn load(&mut self, state: ChardevState) -> Result<(), DeviceError> {
        if state.output.len() > QUEUE + HEADROOM {
            return Err(DeviceError::State {
                device: self.id.clone(),
                found: format!("{} bytes of output", state.output.len()),
                expected: format!("at most {}", QUEUE + HEADROOM),
            });
        }
        match &mut self.backend {
            Backend::Unix(unix) => match &mut unix.client {
                None if state.client && !self.reopened => {
                    return Err(FdError::Missing(FdName::new(format!("{}.client", self.id), 0)).into());
                }
                // It left after it was named.
                Some(client) if !state.client => client.ended = true,
                _ => {}
            },
            // Opened again, the terminal's own settings are known already.
            Backend::Stdio(stdio) if !self.reopened => stdio.original = state.terminal,
            _ => {}
        }
        self.attached &= !matches!(self.backend, Backend::Unix(_)) || state.client;
        self.absent = state.client && self.reopened;
        self.queue = state.output.into();
        self.stopped = true;
        self.held = true;
        Ok(())
    }

    /// The guest lives on elsewhere: dropping this leaves the socket file and the terminal as they are.
    pub fn hand_over(&mut self) {
        self.owner = false;
    }
}

impl Drop for Chardev {
    fn drop(&mut self) {
        if !self.owner {
            return;
        }
        match &mut self.backend {
            Backend::Stdio(stdio) => stdio.restore(),
            Backend::Unix(unix) => unix.unlink(),
            Backend::Null | Backend::File(_) | Backend::Pty(_) => {}
        }
    }
}

fn watch(id: &str, fd: &impl AsRawFd, ops: &mut EventOps) {
    let events = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
    match ops.add(Events::new(fd, events)) {
        // Regular files are always ready, and epoll does not take them.
        Err(event_manager::Error::Epoll(e)) if e.errno() == Errno::EPERM as i32 => {}
        Err(e) => tracing::error!("{id}: watching a descriptor: {e}"),
        Ok(()) => {}
    }
}

fn failed<E: Into<io::Error>>(id: &str, doing: impl FnOnce() -> String) -> impl FnOnce(E) -> DeviceError {
    let device = id.to_owned();
    move |e| DeviceError::Io { device, doing: doing(), source: e.into() }
}
