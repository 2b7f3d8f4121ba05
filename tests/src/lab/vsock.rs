//! A stream over AF_VSOCK with the guest, checked both ways. A connection that ends is made again at once.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use guest_init::message;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};
use serde::{Deserialize, Serialize};

/// The guest's address.
pub const GUEST: u32 = 7;
/// Messages that are on their way at once.
const WINDOW: u64 = 16;
/// For the guest's program to listen.
const UP_WITHIN: Duration = Duration::from_mins(1);

/// What was seen of the stream since it was last asked. Times are in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct VsockReport {
    /// Messages that came back.
    pub messages: u64,
    /// Connections that ended.
    pub ended: u64,
    /// How the last of them did.
    pub how: Option<String>,
    /// The longest time between two messages that came back, or since the last.
    pub gap: f64,
    /// The longest time from the end of a connection to the first message that came back over the next.
    pub renewal: f64,
    /// A message that was not what had been sent.
    pub broken: Option<String>,
}

struct Seen {
    report: VsockReport,
    echoed: Instant,
    /// When a connection ended that has no successor yet.
    ended: Option<Instant>,
}

/// The stream.
pub struct Stream {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stream {
    /// Begins the stream with a guest that is up.
    pub fn start() -> Result<Self> {
        let deadline = Instant::now() + UP_WITHIN;
        let first = loop {
            match dial() {
                Ok(connection) => break connection,
                Err(error) if Instant::now() > deadline => {
                    bail!("connecting to port {} of CID {GUEST}: {error}", message::PORT)
                }
                Err(_) => thread::sleep(Duration::from_millis(50)),
            }
        };
        let seen = Seen { report: VsockReport::default(), echoed: Instant::now(), ended: None };
        let stream = Self { seen: Arc::new(Mutex::new(seen)), stop: Arc::new(AtomicBool::new(false)) };
        let (seen, stop) = (Arc::clone(&stream.seen), Arc::clone(&stream.stop));
        thread::spawn(move || {
            let mut connection = first;
            loop {
                let how = talk(&connection, &seen, &stop);
                if stop.load(SeqCst) {
                    return;
                }
                lock(&seen).end(how);
                connection = loop {
                    match dial() {
                        Ok(connection) => break connection,
                        Err(_) if stop.load(SeqCst) => return,
                        Err(_) => thread::sleep(Duration::from_millis(2)),
                    }
                };
            }
        });
        Ok(stream)
    }

    /// Whether a message came back since then.
    pub fn is_heard(&self) -> bool {
        lock(&self.seen).report.messages > 0
    }

    /// What was seen since this was last asked.
    pub fn take(&self) -> VsockReport {
        let mut seen = lock(&self.seen);
        let fresh = VsockReport { broken: seen.report.broken.clone(), ..VsockReport::default() };
        let mut report = std::mem::replace(&mut seen.report, fresh);
        report.gap = report.gap.max(milliseconds(seen.echoed));
        report.renewal = report.renewal.max(seen.ended.map_or(0.0, milliseconds));
        report
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
    }
}

impl Seen {
    fn echo(&mut self) {
        self.report.gap = self.report.gap.max(milliseconds(self.echoed));
        self.echoed = Instant::now();
        if let Some(ended) = self.ended.take() {
            self.report.renewal = self.report.renewal.max(milliseconds(ended));
        }
        self.report.messages += 1;
    }

    /// A connection ended. One that gave nothing back did not renew the one before.
    fn end(&mut self, how: String) {
        self.report.ended += 1;
        self.report.how = Some(how);
        self.ended.get_or_insert_with(Instant::now);
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn dial() -> nix::Result<File> {
    let socket = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    connect(socket.as_raw_fd(), &VsockAddr::new(GUEST, message::PORT.into()))?;
    Ok(File::from(socket))
}

/// Sends and reads back until the connection ends; says how it did.
fn talk(connection: &File, seen: &Mutex<Seen>, stop: &AtomicBool) -> String {
    let echoed = AtomicU64::new(0);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let out = connection;
        let (echoed, over) = (&echoed, &over);
        scope.spawn(move || {
            let mut number = 0;
            while !over.load(SeqCst) && !stop.load(SeqCst) {
                if number < echoed.load(SeqCst) + WINDOW {
                    // What becomes of the connection is seen where it is read.
                    if send(out, &message::make(number), over).is_err() {
                        return;
                    }
                    number += 1;
                } else {
                    thread::sleep(Duration::from_millis(1));
                }
            }
        });
        let how = read_back(connection, echoed, seen, stop);
        over.store(true, SeqCst);
        how
    })
}

/// Sends all of a message. A guest that cannot be reached just now is no end of the connection.
fn send(mut out: &File, mut bytes: &[u8], over: &AtomicBool) -> io::Result<()> {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) if error.kind() == io::ErrorKind::HostUnreachable && !over.load(SeqCst) => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn read_back(mut connection: &File, echoed: &AtomicU64, seen: &Mutex<Seen>, stop: &AtomicBool) -> String {
    let mut buffer = [0; message::LENGTH];
    for number in 0.. {
        if let Err(error) = connection.read_exact(&mut buffer) {
            return error.to_string();
        }
        if stop.load(SeqCst) {
            break;
        }
        if let Err(wrong) = message::check(&buffer, number) {
            lock(seen).report.broken.get_or_insert(wrong);
        }
        echoed.store(number + 1, SeqCst);
        lock(seen).echo();
    }
    "it was no longer wanted".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_renewed_by_a_message_that_comes_back_and_by_nothing_less() {
        let mut seen = Seen { report: VsockReport::default(), echoed: Instant::now(), ended: None };
        seen.end("reset".into());
        let first = seen.ended;
        seen.end("refused".into());
        assert_eq!(seen.ended, first);
        seen.echo();
        assert_eq!((seen.ended, seen.report.ended, seen.report.messages), (None, 2, 1));
        assert!(seen.report.renewal > 0.0 && seen.report.gap >= seen.report.renewal);
    }
}
