//! The old image's side: with its guest in the stopover, the process executes the new binary.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::command::{Arrival, ExecCommand};
use super::fallback::WayBack;
use super::inherit;
use super::stopover::Stopover;

/// An exec that is about to happen.
#[derive(Debug)]
pub struct Departure {
    command: ExecCommand,
    stopover: Stopover,
    binary: File,
}

impl Departure {
    /// Of this process, which will execute `command`. Its own binary is kept open for a way back.
    pub fn new(command: ExecCommand, stopover: Stopover) -> io::Result<Self> {
        Ok(Self { command, stopover, binary: File::open("/proc/self/exe")? })
    }

    /// The process that the guest goes to first.
    pub fn stopover(&self) -> u32 {
        self.stopover.pid()
    }

    /// It does not happen: the guest is still here.
    pub fn call_off(mut self) {
        self.stopover.end();
    }

    /// Executes the new binary, or where that fails this one again. The guest is in the stopover. Returns only if
    /// neither can be executed.
    pub fn execute(self) -> io::Error {
        let Stopover { onward, back, .. } = self.stopover;
        let way_back = WayBack { binary: self.binary.into(), channel: back };
        let numbers = (way_back.channel.as_raw_fd(), way_back.binary.as_raw_fd());
        let arrival = Arrival { channel: onward.as_raw_fd(), back: Some(numbers) };
        let executed = inherit::keep_only(&[&onward, &way_back.channel, &way_back.binary])
            .and_then(|()| Ok(self.command.argv(&arrival)?))
            .and_then(|argv| execute(&argv));
        let Err(error) = executed;
        let program = self.command.program().display();
        // The stopover must see that nobody comes by the first socket.
        drop(onward);
        way_back.go(&format!("executing {program}: {error}"))
    }
}

fn execute(argv: &[CString]) -> io::Result<std::convert::Infallible> {
    let program = argv.first().ok_or_else(|| io::Error::other("the command is empty"))?;
    Ok(nix::unistd::execvp(program, argv)?)
}
