//! The serial console: numbered lines out, commands in.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use guest_init::frame::{Frame, Kind};
use nix::sys::termios::{SetArg, cfmakeraw, tcdrain, tcgetattr, tcsetattr};

/// Text that numbered lines show a piece of.
const FILLER: &str = "the quick brown fox jumps over the lazy dog 0123456789 ";

/// Bytes that are given to the serial driver at once. It sends all it has in one interrupt: on a machine where a byte
/// takes most of a millisecond, as on a nested host under TCG, a longer piece would hold a CPU for seconds.
const PIECE: usize = 32;

/// How long a terminal may take to be there.
const THERE_WITHIN: Duration = Duration::from_secs(20);

struct Out {
    file: File,
    sequence: u64,
}

/// The serial console. A line is written whole or not begun.
pub struct Console {
    input: File,
    out: Mutex<Out>,
}

impl Console {
    /// Opens a terminal and makes it raw: no echo, no translation. One that is not there yet is waited for: a virtio
    /// console's driver finds its ports in its own time.
    pub fn open(path: &str) -> io::Result<Self> {
        let deadline = Instant::now() + THERE_WITHIN;
        let file = loop {
            match OpenOptions::new().read(true).write(true).open(path) {
                Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
                opened => break opened?,
            }
        };
        let mut terminal = tcgetattr(&file)?;
        cfmakeraw(&mut terminal);
        tcsetattr(&file, SetArg::TCSANOW, &terminal)?;
        Ok(Self { input: file.try_clone()?, out: Mutex::new(Out { file, sequence: 0 }) })
    }

    /// Writes the next line of the sequence.
    pub fn line(&self, kind: Kind, payload: &str) {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let frame = Frame { sequence: out.sequence, kind, payload: payload.replace('\n', " ") };
        out.sequence += 1;
        for piece in format!("{frame}\n").as_bytes().chunks(PIECE) {
            let _ = out.file.write_all(piece);
            let _ = tcdrain(&out.file);
        }
    }

    /// Writes the answer to a command.
    pub fn reply(&self, payload: &str) {
        self.line(Kind::Reply, payload);
    }

    /// Writes a line of filler.
    pub fn numbered(&self) {
        self.line(Kind::Numbered, FILLER);
    }

    /// Reads what has come; blocks until something has.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.input).read(buffer)
    }
}
