//! One client: what it sent and we did not answer, what we answered and it did not read.
//!
//! 1. Past [`BUSY`] bytes of unread answers no more requests are read from it.
//! 2. Past [`MAX_OUTPUT`] bytes (events go on coming) it is dropped.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use event_manager::{EventOps, EventSet, Events};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;

use super::socket::Peer;
use super::state::MonitorClientState;
use crate::monitor::commands;
use crate::monitor::control::{CommandError, Control};
use crate::monitor::framing::{Frame, Framer};

/// Unread output past which a client's requests wait.
const BUSY: usize = 64 << 10;

/// Unread output past which a client is dropped.
pub(super) const MAX_OUTPUT: usize = 1 << 20;

/// How a client stands.
pub(super) enum Verdict {
    Stays,
    Over(&'static str),
}

pub(super) struct Connection {
    stream: UnixStream,
    peer: Peer,
    negotiated: bool,
    input: Framer,
    output: VecDeque<u8>,
    /// Why it is to be dropped, as soon as its output is written.
    ending: Option<&'static str>,
    /// Why it is dropped now.
    over: Option<&'static str>,
    watched: Option<EventSet>,
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Connection {
    /// A client that just came; it is greeted.
    pub fn new(stream: UnixStream, peer: Peer) -> Self {
        let state = MonitorClientState::default();
        let mut client = Self::resume(stream, peer, state);
        client.queue(&commands::greeting());
        client
    }

    /// A client that another process served until now.
    pub fn resume(stream: UnixStream, peer: Peer, state: MonitorClientState) -> Self {
        Self {
            stream,
            peer,
            negotiated: state.negotiated,
            input: Framer::resume(state.pending_input, state.skipping),
            output: state.pending_output.into(),
            ending: None,
            over: None,
            watched: None,
        }
    }

    /// What is under way.
    pub fn state(&self) -> MonitorClientState {
        MonitorClientState {
            negotiated: self.negotiated,
            skipping: self.input.is_skipping(),
            pending_input: self.input.pending().to_vec(),
            pending_output: self.output.iter().copied().collect(),
        }
    }

    pub fn peer(&self) -> Peer {
        self.peer
    }

    pub fn is_negotiated(&self) -> bool {
        self.negotiated
    }

    /// Whether it is to be served, and neither ends nor has too much to read first.
    fn takes_requests(&self) -> bool {
        self.over.is_none() && self.ending.is_none() && self.output.len() < BUSY
    }

    /// Reads once, a bounded amount.
    pub fn read(&mut self) {
        if !self.takes_requests() {
            return;
        }
        let mut buffer = [0; 16 << 10];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.ending = Some("it hung up"),
            Ok(n) => self.input.push(&buffer[..n]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.over = Some("reading from it failed"),
        }
    }

    /// Answers the next complete request.
    pub fn answer_next(&mut self, control: &dyn Control) -> Option<Value> {
        if self.output.len() >= BUSY {
            self.flush();
        }
        if self.over.is_some() || self.output.len() >= BUSY {
            return None;
        }
        match self.input.next()? {
            Frame::Value(request) => Some(commands::answer(control, &mut self.negotiated, request)),
            Frame::Malformed(why) => {
                Some(commands::error_message(&CommandError::generic(format!("JSON parse error: {why}"))))
            }
            Frame::TooLong => {
                self.ending = Some("it sent a request that is too long");
                self.input = Framer::default();
                Some(commands::error_message(&CommandError::generic("request is longer than 1 MiB")))
            }
        }
    }

    /// Adds a message to what it is to read.
    pub fn queue(&mut self, message: &Value) {
        if self.over.is_some() {
            return;
        }
        let text = message.to_string();
        if self.output.len() + text.len() > MAX_OUTPUT {
            self.over = Some("it does not read");
            return;
        }
        self.output.extend(text.as_bytes());
        self.output.extend(b"\r\n");
    }

    /// Writes what can be written now.
    fn flush(&mut self) {
        while self.over.is_none() && !self.output.is_empty() {
            match self.stream.write(self.output.as_slices().0) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.over = Some("writing to it failed"),
            }
        }
    }

    /// Writes everything, waiting for the client until `deadline`.
    pub fn flush_until(&mut self, deadline: Instant) {
        loop {
            self.flush();
            let left = deadline.saturating_duration_since(Instant::now());
            if self.over.is_some() || self.output.is_empty() || left.is_zero() {
                return;
            }
            let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::POLLOUT)];
            // An error or a signal shows itself in the next round.
            let _ = poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        }
    }

    /// Writes what can be written, and watches for what it now waits for.
    pub fn settle(&mut self, ops: &mut EventOps) -> Verdict {
        self.flush();
        if self.over.is_none() && self.output.is_empty() {
            self.over = self.ending;
        }
        if let Some(why) = self.over {
            return Verdict::Over(why);
        }
        let mut wanted = EventSet::empty();
        if self.takes_requests() {
            wanted |= EventSet::IN;
        }
        if !self.output.is_empty() {
            wanted |= EventSet::OUT;
        }
        let result = match self.watched {
            Some(watched) if watched == wanted => Ok(()),
            Some(_) => ops.modify(Events::new(&self.stream, wanted)),
            None => ops.add(Events::new(&self.stream, wanted)),
        };
        match result {
            Ok(()) => {
                self.watched = Some(wanted);
                Verdict::Stays
            }
            Err(_) => Verdict::Over("it cannot be watched"),
        }
    }

    /// Lets the event loop forget it.
    pub fn unwatch(&mut self, ops: &mut EventOps) {
        if self.watched.take().is_some()
            && let Err(error) = ops.remove(Events::empty(&self.stream))
        {
            tracing::error!(%error, "monitor: a client could not be let go of");
        }
    }
}
