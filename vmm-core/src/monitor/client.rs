//! A QMP client: blocking, with a deadline on everything.
//!
//! 1. Every wait ends at its deadline, whatever the server does or does not send.
//! 2. Events that come in while an answer is awaited are kept, in order.
//! 3. A connection that ends is [`ClientError::Closed`]; the client says nothing of where the guest is.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use super::control::CommandError;
use super::framing::{Frame, Framer};

/// How long a server may take to answer, unless told otherwise.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The most events kept for who does not take them; the oldest go first.
const MAX_EVENTS: usize = 4096;

/// Why a command was not executed, or an event not received.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody could be reached.
    #[error("connecting to the monitor at {path}")]
    Connect {
        /// The socket.
        path: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The server is gone.
    #[error("the monitor closed the connection")]
    Closed,
    /// The deadline passed.
    #[error("the monitor did not answer {0} in time")]
    TimedOut(String),
    /// A system call failed.
    #[error("speaking to the monitor")]
    Io(#[from] io::Error),
    /// The server does not speak QMP.
    #[error("the monitor does not speak QMP: {0}")]
    Protocol(String),
    /// The command was refused or failed.
    #[error("{command}")]
    Command {
        /// The command.
        command: String,
        /// The server's answer.
        #[source]
        error: CommandError,
    },
}

impl ClientError {
    /// The server's answer, where it gave one.
    pub fn command_error(&self) -> Option<&CommandError> {
        match self {
            Self::Command { error, .. } => Some(error),
            _ => None,
        }
    }

    /// Whether the connection is lost: the server may be gone, and with it the guest.
    pub fn is_lost(&self) -> bool {
        !matches!(self, Self::Command { .. } | Self::TimedOut(_))
    }
}

/// Something that the server told without being asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedEvent {
    /// Its name (`STOP`).
    pub name: String,
    /// Its data; null where it has none.
    pub data: Value,
    /// Microseconds since 1970, on the server's wall clock.
    pub at_us: u64,
}

/// A connection to a monitor, past its negotiation.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    path: PathBuf,
    input: Framer,
    events: VecDeque<ReceivedEvent>,
    greeting: Value,
    next_id: u64,
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Client {
    /// Connects and negotiates.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path)
            .map_err(|source| ClientError::Connect { path: path.display().to_string(), source })?;
        let mut client = Self {
            stream,
            path: path.to_owned(),
            input: Framer::default(),
            events: VecDeque::new(),
            greeting: Value::Null,
            next_id: 0,
        };
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        client.greeting = client.message("the connection with a greeting", deadline)?;
        if client.greeting.get("QMP").is_none() {
            return Err(ClientError::Protocol("its greeting holds no 'QMP'".into()));
        }
        client.execute("qmp_capabilities", &json!({}))?;
        Ok(client)
    }

    /// Connects and negotiates; while nobody listens there yet, tries again for at most `within`.
    pub fn connect_within(path: &Path, within: Duration) -> Result<Self, ClientError> {
        let deadline = Instant::now() + within;
        loop {
            match Self::connect(path) {
                Err(ClientError::Connect { source, .. })
                    if Instant::now() < deadline
                        && matches!(
                            source.kind(),
                            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                        ) =>
                {
                    std::thread::sleep(Duration::from_millis(5));
                }
                result => return result,
            }
        }
    }

    /// The socket that it was connected to.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the server greeted with.
    pub fn greeting(&self) -> &Value {
        &self.greeting
    }

    /// Executes a command and returns what it returns. Waits [`ANSWER_TIMEOUT`].
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, ClientError> {
        self.execute_within(command, arguments, ANSWER_TIMEOUT)
    }

    /// Executes a command and returns what it returns. Waits `within`.
    pub fn execute_within(
        &mut self,
        command: &str,
        arguments: &Value,
        within: Duration,
    ) -> Result<Value, ClientError> {
        let deadline = Instant::now() + within;
        self.next_id += 1;
        let id = json!(self.next_id);
        let mut request = json!({"execute": command, "arguments": arguments, "id": id}).to_string();
        request.push('\n');
        self.stream.set_write_timeout(Some(within))?;
        self.stream.write_all(request.as_bytes()).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ClientError::Closed,
            io::ErrorKind::WouldBlock => ClientError::TimedOut(command.to_owned()),
            _ => error.into(),
        })?;
        loop {
            let mut message = self.message(command, deadline)?;
            if let Some(event) = received(&message) {
                self.keep(event);
            } else if message.get("id") != Some(&id) {
                // The late answer to a command whose deadline passed, or an error that names no command.
                tracing::debug!(%message, "monitor client: an answer that nobody waits for");
            } else if let Some(value) = message.get_mut("return") {
                return Ok(value.take());
            } else {
                let error = message.get("error").cloned().unwrap_or_default();
                let error = CommandError::deserialize(error)
                    .map_err(|_| ClientError::Protocol(format!("an answer without 'return': {message}")))?;
                return Err(ClientError::Command { command: command.to_owned(), error });
            }
        }
    }

    /// The next event, or `None` if there is none until `deadline`.
    pub fn next_event(&mut self, deadline: Instant) -> Result<Option<ReceivedEvent>, ClientError> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            match self.message("with an event", deadline) {
                Ok(message) => received(&message).into_iter().for_each(|event| self.keep(event)),
                Err(ClientError::TimedOut(_)) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits for an event called `name`; the others that come before it are dropped.
    pub fn wait_event(&mut self, name: &str, within: Duration) -> Result<ReceivedEvent, ClientError> {
        let deadline = Instant::now() + within;
        while let Some(event) = self.next_event(deadline)? {
            if event.name == name {
                return Ok(event);
            }
        }
        Err(ClientError::TimedOut(format!("with event {name}")))
    }

    fn keep(&mut self, event: ReceivedEvent) {
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    fn message(&mut self, awaited: &str, deadline: Instant) -> Result<Value, ClientError> {
        loop {
            match self.input.next() {
                Some(Frame::Value(value)) => return Ok(value),
                Some(Frame::Malformed(why)) => return Err(ClientError::Protocol(why)),
                Some(Frame::TooLong) => return Err(ClientError::Protocol("a message over 1 MiB".into())),
                None => {}
            }
            // A timeout of zero would mean none.
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_micros(1));
            self.stream.set_read_timeout(Some(left))?;
            let mut buffer = [0; 16 << 10];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(ClientError::Closed),
                Ok(n) => self.input.push(&buffer[..n]),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => return Err(ClientError::TimedOut(awaited.to_owned())),
                    io::ErrorKind::ConnectionReset => return Err(ClientError::Closed),
                    _ => return Err(error.into()),
                },
            }
        }
    }
}

fn received(message: &Value) -> Option<ReceivedEvent> {
    let name = message.get("event")?.as_str()?.to_owned();
    let time = |part| message.pointer(&format!("/timestamp/{part}")).and_then(Value::as_u64).unwrap_or(0);
    Some(ReceivedEvent {
        name,
        data: message.get("data").cloned().unwrap_or_default(),
        at_us: time("seconds").saturating_mul(1_000_000).saturating_add(time("microseconds")),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;
    const NEGOTIATED: &str = r#"{"return": {}, "id": 1}"#;

    /// A server that says each text after having read something, and then hangs up once we do.
    fn server(texts: &[&str]) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for (n, text) in texts.iter().enumerate() {
                if n > 0 {
                    assert_ne!(stream.read(&mut [0; 4096]).unwrap(), 0);
                }
                if text == "hang up" {
                    return;
                }
                stream.write_all(text.as_bytes()).unwrap();
            }
            let _ = stream.read_to_end(&mut Vec::new());
        });
        (directory, path)
    }

    fn connect(texts: &[&str]) -> Result<Client, ClientError> {
        let (_directory, path) = server(texts);
        Client::connect(&path)
    }

    #[test]
    fn a_server_that_speaks_something_else_is_refused() {
        for text in ["HTTP/1.1 400 Bad Request\r\n", r#"{"hello": 1}"#] {
            assert!(matches!(connect(&[text]), Err(ClientError::Protocol(_))), "{text}");
        }
    }

    #[test]
    fn a_server_that_hangs_up_is_said_to_be_closed() {
        assert!(matches!(connect(&["hang up"]), Err(ClientError::Closed)));
        assert!(matches!(connect(&[GREETING, "hang up"]), Err(ClientError::Closed)));
        let mut client = connect(&[GREETING, NEGOTIATED, "hang up"]).unwrap();
        let error = client.execute("stop", &json!({})).unwrap_err();
        assert!(matches!(error, ClientError::Closed) && error.is_lost());
    }

    #[test]
    fn a_server_that_is_silent_costs_no_more_than_the_deadline() {
        let mut client = connect(&[GREETING, NEGOTIATED]).unwrap();
        let error = client.execute_within("stop", &json!({}), Duration::from_millis(50)).unwrap_err();
        assert!(matches!(&error, ClientError::TimedOut(what) if what == "stop"));
        assert!(client.next_event(Instant::now() + Duration::from_millis(50)).unwrap().is_none());
    }

    #[test]
    fn events_around_an_answer_are_kept_in_order() {
        let answer = r#"{"event": "STOP", "timestamp": {"seconds": 2, "microseconds": 5}}
            {"return": "late", "id": 77}{"return": 1, "id": 2}{"event": "RESUME", "data": {"x": 1}}"#;
        let mut client = connect(&[GREETING, NEGOTIATED, answer]).unwrap();
        assert_eq!(client.execute("query", &json!({})).unwrap(), 1);
        let deadline = Instant::now() + Duration::from_secs(5);
        let first = client.next_event(deadline).unwrap().unwrap();
        assert_eq!((first.name.as_str(), first.at_us), ("STOP", 2_000_005));
        assert_eq!(client.next_event(deadline).unwrap().unwrap().data["x"], 1);
    }

    #[test]
    fn a_refusal_carries_the_servers_words() {
        let answer = r#"{"error": {"class": "GenericError", "desc": "no"}, "id": 2}"#;
        let mut client = connect(&[GREETING, NEGOTIATED, answer]).unwrap();
        let error = client.execute("cont", &json!({})).unwrap_err();
        assert_eq!(error.command_error().unwrap().desc, "no");
        assert!(!error.is_lost());
    }

    #[test]
    fn a_socket_that_comes_late_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let late = path.clone();
        assert!(matches!(Client::connect(&path), Err(ClientError::Connect { .. })));
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            let (mut stream, _) = UnixListener::bind(late).unwrap().accept().unwrap();
            stream.write_all(format!("{GREETING}{NEGOTIATED}").as_bytes()).unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
        });
        Client::connect_within(&path, Duration::from_secs(5)).unwrap();
    }
}
