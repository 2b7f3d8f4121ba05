//! The client of a test guest's serial socket.
//!
//! 1. Every line is read, checked and counted ([`guest_init::stream`]); the raw bytes are kept in a file.
//! 2. While pinging is on, the guest is asked to echo numbers: one that is lost or comes twice on the way in or out shows.
//! 3. A connection that ends is taken up again as soon as the socket takes one, and counted.

use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use guest_init::frame::{Frame, Kind};
use guest_init::status::Status;
use guest_init::stream::{StreamReader, StreamStats};
use serde::{Deserialize, Serialize};

use super::client::{self, Event, RETRY};
use super::report::Pings;

const PING_EVERY: Duration = Duration::from_millis(200);
/// On a busy machine a serial port under TCG does a hundred bytes a second.
const ANSWER_WITHIN: Duration = Duration::from_secs(90);
/// For an answer that did not come in that time: one that comes at last tells that the guest goes on.
const AT_LAST_WITHIN: Duration = Duration::from_secs(150);

/// What a guest has said and answered, for another client of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Heard {
    reader: StreamReader,
    kernel_messages: Vec<String>,
    pings: Pings,
}

/// A status and the host's time around it.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Before it was asked for.
    pub asked: Instant,
    /// After it came.
    pub answered: Instant,
    /// What the guest said.
    pub status: Status,
}

#[derive(Default)]
struct Shared {
    heard: Heard,
    writer: Option<UnixStream>,
    connected_before: bool,
    pinging: bool,
    closing: bool,
}

/// The client of a test guest's serial socket.
pub struct Console {
    shared: Arc<Mutex<Shared>>,
    replies: Receiver<String>,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Console {
    /// Connects to a socket as soon as it is there; the bytes read are kept in the file `log`.
    pub fn connect(socket: &Path, log: &Path) -> Result<Self> {
        Self::follow(socket, log, Shared::default())
    }

    /// The same, for a guest that another client has heard, whose connection has ended.
    pub fn go_on(socket: &Path, log: &Path, heard: Heard) -> Result<Self> {
        Self::follow(socket, log, Shared { heard, connected_before: true, ..Shared::default() })
    }

    fn follow(socket: &Path, log: &Path, shared: Shared) -> Result<Self> {
        let shared = Arc::new(Mutex::new(shared));
        let (sender, replies) = mpsc::channel();
        let log = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        let (reading, socket) = (Arc::clone(&shared), socket.to_owned());
        thread::spawn(move || client::follow(&socket, log, |event| see(&reading, event, &sender)));
        let pinging = Arc::clone(&shared);
        thread::spawn(move || ping(&pinging));
        Ok(Self { shared, replies })
    }

    /// Sends a command and waits for the answer.
    pub fn command(&self, command: &str) -> Result<String> {
        lock(&self.shared).send(command).with_context(|| format!("sending {command:?} to the guest"))?;
        let asked = Instant::now();
        self.reply(ANSWER_WITHIN).map_err(|error| {
            let at_last = self.reply(AT_LAST_WITHIN).is_ok();
            let seconds = asked.elapsed().as_secs();
            error.context(if at_last {
                format!("the guest answered {command:?} at last, after {seconds} s")
            } else {
                format!("the guest did not answer {command:?} in {seconds} s")
            })
        })
    }

    /// Sends an empty line.
    pub fn press_return(&self) -> Result<()> {
        lock(&self.shared).send("")
    }

    /// Waits for the next answer.
    pub fn reply(&self, within: Duration) -> Result<String> {
        self.replies.recv_timeout(within).map_err(|error| match error {
            RecvTimeoutError::Timeout => anyhow!("nothing came within {within:?}"),
            RecvTimeoutError::Disconnected => anyhow!("the console's reader has ended"),
        })
    }

    /// Asks the guest for its figures.
    pub fn status(&self) -> Result<Reading> {
        let asked = Instant::now();
        let reply = self.command("STATUS?")?;
        let answered = Instant::now();
        let Some(figures) = reply.strip_prefix("STATUS ") else {
            bail!("the guest answered STATUS? with {reply:?}")
        };
        let status =
            serde_json::from_str(figures).with_context(|| format!("the guest's figures {figures}"))?;
        Ok(Reading { asked, answered, status })
    }

    /// Begins pinging.
    pub fn start_pinging(&self) {
        lock(&self.shared).pinging = true;
    }

    /// Ends pinging and waits until every ping is answered.
    pub fn finish_pinging(&self) -> Result<()> {
        lock(&self.shared).pinging = false;
        let deadline = Instant::now() + ANSWER_WITHIN;
        loop {
            let pings = self.pings();
            if pings.answered + pings.wrong >= pings.sent {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{} of {} pings were not answered", pings.sent - pings.answered, pings.sent);
            }
            thread::sleep(RETRY);
        }
    }

    /// What happened to the console's lines so far.
    pub fn stats(&self) -> StreamStats {
        lock(&self.shared).heard.reader.stats().clone()
    }

    /// What happened to the pings so far.
    pub fn pings(&self) -> Pings {
        lock(&self.shared).heard.pings.clone()
    }

    /// What was heard, once the connection has ended: until then there may be more to come.
    pub fn heard_all(&self) -> Result<Heard> {
        let deadline = Instant::now() + ANSWER_WITHIN;
        while lock(&self.shared).writer.is_some() {
            ensure!(Instant::now() < deadline, "the connection did not end within {ANSWER_WITHIN:?}");
            thread::sleep(RETRY);
        }
        Ok(lock(&self.shared).heard.clone())
    }

    /// Whether somebody is at the other end.
    pub fn is_connected(&self) -> bool {
        lock(&self.shared).writer.is_some()
    }

    /// The kernel messages of trouble so far, each with its class before it.
    pub fn kernel_messages(&self) -> Vec<String> {
        lock(&self.shared).heard.kernel_messages.clone()
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let mut shared = lock(&self.shared);
        shared.closing = true;
        if let Some(stream) = shared.writer.take() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl Shared {
    fn send(&mut self, command: &str) -> Result<()> {
        let stream = self.writer.as_mut().context("not connected")?;
        stream.write_all(format!("{command}\n").as_bytes())?;
        Ok(())
    }

    fn take(&mut self, frame: Frame) -> Option<String> {
        match frame.kind {
            Kind::Numbered => None,
            Kind::Kernel => {
                self.heard.kernel_messages.push(frame.payload);
                None
            }
            Kind::Reply => match frame.payload.strip_prefix("PONG ") {
                Some(number) => {
                    self.heard.pings.answer(number);
                    None
                }
                None => Some(frame.payload),
            },
        }
    }
}

fn see(shared: &Mutex<Shared>, event: Event, replies: &mpsc::Sender<String>) -> bool {
    let mut state = lock(shared);
    match event {
        Event::Unconnected => return !state.closing,
        Event::Connected(writer) => {
            if state.connected_before {
                state.heard.reader.reconnected();
            }
            state.connected_before = true;
            state.writer = Some(writer);
        }
        Event::Bytes(bytes) => {
            for frame in state.heard.reader.feed(bytes) {
                if let Some(reply) = state.take(frame)
                    && replies.send(reply).is_err()
                {
                    return false;
                }
            }
        }
        Event::Ended => state.writer = None,
    }
    true
}

fn ping(shared: &Mutex<Shared>) {
    loop {
        thread::sleep(PING_EVERY);
        let mut state = lock(shared);
        if state.closing {
            return;
        }
        // While the guest stands still only so many wait that its FIFO and the socket hold them.
        if state.pinging && state.heard.pings.sent < state.heard.pings.answered + 20 {
            let number = state.heard.pings.sent;
            if state.send(&format!("PING {number}")).is_ok() {
                state.heard.pings.sent += 1;
            }
        }
    }
}
