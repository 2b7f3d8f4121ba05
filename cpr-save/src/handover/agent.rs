//! The guest's own agent, over the socket that its port is on (QEMU's guest agent protocol).
//!
//! 1. Whatever an earlier client was still to be told is skipped: answers begin behind the byte that `guest-sync-delimited` has
//!    the agent send first.
//! 2. Nothing is waited for past a deadline.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};
use serde_json::{Value, json};

/// What no JSON has in it: the agent drops what came before it, and sends it before its answer.
const SENTINEL: u8 = 0xff;
/// How long a read waits.
const SLICE: Duration = Duration::from_millis(20);
/// The longest answer that is read.
const LONGEST: usize = 64 << 10;

/// How many characters of what it says are told.
const MOST: usize = 200;

/// Connects, as soon as whoever serves the socket takes another client.
fn connect(socket: &Path, deadline: Instant) -> anyhow::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let address = UnixAddr::new(socket)?;
    while let Err(error) = socket::connect(fd.as_raw_fd(), &address) {
        if error != Errno::EAGAIN || Instant::now() > deadline {
            return Err(error.into());
        }
        std::thread::sleep(SLICE);
    }
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// An agent that answers.
pub struct Agent {
    socket: PathBuf,
    stream: UnixStream,
    /// What came and was not taken yet.
    said: Vec<u8>,
}

impl Agent {
    /// Connects, and waits until the agent answers.
    pub fn find(socket: &Path, deadline: Instant) -> anyhow::Result<Self> {
        let doing = || format!("connecting to the guest's agent at {}", socket.display());
        let stream = connect(socket, deadline).with_context(doing)?;
        stream.set_read_timeout(Some(SLICE)).with_context(doing)?;
        stream.set_write_timeout(Some(SLICE)).with_context(doing)?;
        let mut agent = Self { socket: socket.to_owned(), stream, said: Vec::new() };
        let id = std::process::id();
        let sync = json!({"execute": "guest-sync-delimited", "arguments": {"id": id}});
        agent.send(&[&[SENTINEL], format!("{sync}\n").as_bytes()].concat())?;
        while Instant::now() < deadline {
            agent.listen()?;
            if let Some(at) = agent.said.iter().position(|byte| *byte == SENTINEL) {
                agent.said.drain(..=at);
            }
            if let Some(answer) = agent.answer()
                && answer["return"] == id
            {
                return Ok(agent);
            }
        }
        let socket = socket.display();
        Err(anyhow!(
            "no agent answers at {socket}: does one run in the guest, and is nobody else connected to it?"
        ))
    }

    /// Asks it to suspend the guest. It answers only if it will not.
    pub fn suspend(&mut self) -> anyhow::Result<()> {
        self.send(format!("{}\n", json!({"execute": "guest-suspend-ram"})).as_bytes())
    }

    /// Why it will not, if it says so within a moment.
    pub fn refusal(&mut self) -> Option<String> {
        if let Err(error) = self.listen() {
            // It sleeps, or will not be heard of any more.
            tracing::debug!("{error:#}");
            std::thread::sleep(SLICE);
        }
        let error = self.answer()?.get("error")?.clone();
        let said = error["desc"].as_str().map_or_else(|| error.to_string(), str::to_owned);
        // The guest's words go to an operator's terminal.
        Some(said.chars().take(MOST).flat_map(char::escape_debug).collect())
    }

    fn send(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.stream.write_all(bytes).with_context(|| format!("asking the agent at {}", self.socket.display()))
    }

    /// Takes what has come.
    fn listen(&mut self) -> anyhow::Result<()> {
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer) {
            Ok(0) => bail!("the agent's socket {} was closed", self.socket.display()),
            Ok(length) => self.said.extend(&buffer[..length]),
            Err(error)
                if [ErrorKind::WouldBlock, ErrorKind::TimedOut, ErrorKind::Interrupted]
                    .contains(&error.kind()) => {}
            Err(error) => return Err(error).context("listening to the agent"),
        }
        // A line that is longer is no answer.
        if self.said.len() > LONGEST {
            self.said.clear();
        }
        Ok(())
    }

    /// The next whole line that is an answer.
    fn answer(&mut self) -> Option<Value> {
        while let Some(end) = self.said.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.said.drain(..=end).collect();
            if let Ok(answer) = serde_json::from_slice(&line) {
                return Some(answer);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// An agent that answers each line as it is told, `ID` being what it was asked to say.
    fn agent(answers: &'static [&'static [u8]]) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent");
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap());
            for answer in answers {
                let mut line = Vec::new();
                lines.read_until(b'\n', &mut line).unwrap();
                let id = std::process::id().to_string();
                let mut bytes = answer.to_vec();
                if let Some(at) = answer.windows(2).position(|two| two == b"ID") {
                    bytes.splice(at..at + 2, id.into_bytes());
                }
                stream.write_all(&bytes).unwrap();
            }
            // The port stays open.
            thread::sleep(Duration::from_secs(5));
        });
        (directory, path)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(500)
    }

    #[test]
    fn what_an_earlier_client_was_told_is_skipped() {
        let (_directory, path) = agent(&[b"{\"return\": 7}\n{\"ret\xff{\"return\": ID}\n"]);
        assert_eq!(Agent::find(&path, soon()).unwrap().refusal(), None);
    }

    #[test]
    fn an_agent_that_will_not_suspend_its_guest_says_why() {
        let (_directory, path) = agent(&[
            b"\xff{\"return\": ID}\n",
            b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"not supported\"}}\n",
        ]);
        let mut agent = Agent::find(&path, soon()).unwrap();
        agent.suspend().unwrap();
        let why = (0..100).find_map(|_| agent.refusal());
        assert_eq!(why.as_deref(), Some("not supported"));
    }

    #[test]
    fn a_port_at_which_nobody_answers_is_named() {
        let (_directory, path) = agent(&[b""]);
        let error = Agent::find(&path, soon()).err().unwrap().to_string();
        assert!(error.contains("no agent answers at") && error.contains("agent:"), "{error}");
    }
}
