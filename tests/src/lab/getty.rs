//! The client of a guest's serial port where the guest's own userland has a getty on it.
//!
//! 1. All that comes is kept in a file; each prompt for a login is counted.
//! 2. A connection that ends is taken up again as soon as the socket takes one, and counted.

use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::client::{self, Event, RETRY};

/// What a getty's prompt ends with (agetty(8)).
const PROMPT: &[u8] = b" login: ";

#[derive(Default)]
struct Shared {
    prompts: Prompts,
    disconnects: u64,
    writer: Option<UnixStream>,
    closing: bool,
}

/// Counts prompts in what comes in pieces.
#[derive(Default)]
struct Prompts {
    /// The last bytes, as many as a prompt has.
    tail: Vec<u8>,
    count: u64,
}

/// The client of the serial port.
pub struct Getty(Arc<Mutex<Shared>>);

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Prompts {
    fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.tail.len() == PROMPT.len() {
                self.tail.remove(0);
            }
            self.tail.push(byte);
            self.count += u64::from(self.tail == PROMPT);
        }
    }
}

impl Getty {
    /// Connects to a socket as soon as it is there; the bytes read are kept in the file `log`.
    pub fn connect(socket: &Path, log: &Path) -> Result<Self> {
        let log = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (reading, socket) = (Arc::clone(&shared), socket.to_owned());
        thread::spawn(move || client::follow(&socket, log, |event| see(&reading, event)));
        Ok(Self(shared))
    }

    /// Waits for the first prompt.
    pub fn first_prompt(&self, within: Duration) -> Result<()> {
        self.prompt_after(0, within)
    }

    /// Presses return and waits for a prompt.
    pub fn ask(&self, within: Duration) -> Result<()> {
        let before = lock(&self.0).prompts.count;
        let deadline = Instant::now() + within;
        loop {
            // After a reboot the socket is a new one.
            match lock(&self.0).writer.as_mut().map(|stream| stream.write_all(b"\r")) {
                Some(Ok(())) => break,
                _ if Instant::now() > deadline => bail!("the serial port took nothing within {within:?}"),
                _ => {}
            }
            thread::sleep(RETRY);
        }
        self.prompt_after(before, deadline.saturating_duration_since(Instant::now()))
    }

    /// Connections that ended.
    pub fn disconnects(&self) -> u64 {
        lock(&self.0).disconnects
    }

    fn prompt_after(&self, before: u64, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        while lock(&self.0).prompts.count <= before {
            if Instant::now() > deadline {
                bail!("no prompt for a login came over the serial port within {within:?}");
            }
            thread::sleep(RETRY);
        }
        Ok(())
    }
}

impl Drop for Getty {
    fn drop(&mut self) {
        let mut shared = lock(&self.0);
        shared.closing = true;
        if let Some(stream) = shared.writer.take() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

fn see(shared: &Mutex<Shared>, event: Event) -> bool {
    let mut state = lock(shared);
    match event {
        Event::Unconnected => return !state.closing,
        Event::Connected(writer) => state.writer = Some(writer),
        Event::Bytes(bytes) => state.prompts.feed(bytes),
        Event::Ended => {
            state.writer = None;
            state.disconnects += 1;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_prompt_is_counted_in_pieces_of_any_size() {
        let text =
            b"[  OK  ] Reached target\r\n\r\nDebian\r\n\r\nlab login: \r\n\r\nDebian\r\n\r\nlab login: ";
        for size in 1..text.len() {
            let mut prompts = Prompts::default();
            text.chunks(size).for_each(|piece| prompts.feed(piece));
            assert_eq!(prompts.count, 2);
        }
    }

    #[test]
    fn a_prompt_is_waited_for_and_one_that_does_not_come_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("tty");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let getty = Getty::connect(&socket, &directory.path().join("log")).unwrap();
        let (mut guest, _) = listener.accept().unwrap();
        guest.write_all(b"lab login: ").unwrap();
        getty.first_prompt(Duration::from_secs(10)).unwrap();
        let answering = thread::spawn(move || {
            let mut byte = [0];
            guest.read_exact(&mut byte).unwrap();
            guest.write_all(b"\r\nlab login: ").unwrap();
            guest
        });
        getty.ask(Duration::from_secs(10)).unwrap();
        let _guest = answering.join().unwrap();
        let error = getty.ask(Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("no prompt for a login"), "{error}");
    }
}
