//! The process's standard input and output.
//!
//! Their open file descriptions are shared with the shell and whoever else: they are not made non-blocking. Where
//! the kernel allows it they are opened anew; where not, each access asks first whether it would wait.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{OutputFlags, SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, isatty, tcgetpgrp};

use super::backend::{Input, Output, read_from, write_to};
use super::state::TerminalState;

/// What a pipe takes without waiting once it says that it takes something.
const PIPE_BUF: usize = 4096;

/// The process's standard input and output.
#[derive(Debug)]
pub(super) struct Stdio {
    pub(super) input: Option<File>,
    pub(super) output: File,
    /// What the terminal was before it was made raw.
    pub(super) original: Option<TerminalState>,
    ended: bool,
}

impl Stdio {
    /// This process's own; a terminal is made raw.
    pub(super) fn open() -> io::Result<Self> {
        let input = own(io::stdin().as_fd(), OFlag::O_RDONLY).ok();
        let output = own(io::stdout().as_fd(), OFlag::O_WRONLY)?;
        let original = match &input {
            Some(input) if isatty(input).unwrap_or(false) && in_foreground(input) => Some(make_raw(input)?),
            _ => None,
        };
        Ok(Self { input, output, original, ended: false })
    }

    /// Around descriptors that have been checked.
    pub(super) fn with(input: Option<OwnedFd>, output: OwnedFd) -> Self {
        Self { input: input.map(File::from), output: output.into(), original: None, ended: false }
    }

    pub(super) fn read(&mut self, buf: &mut [u8]) -> Input {
        let Some(input) = self.input.as_ref().filter(|_| !self.ended) else { return Input::Nothing };
        if !ready(input, PollFlags::POLLIN) || !in_foreground(input) {
            return Input::Nothing;
        }
        let read = read_from(&mut &*input, buf);
        self.ended = matches!(read, Input::End);
        read
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Output {
        if !ready(&self.output, PollFlags::POLLOUT) {
            return Output::Full;
        }
        write_to(&mut &self.output, &bytes[..bytes.len().min(PIPE_BUF)])
    }

    /// Sets the terminal back to what it was.
    pub(super) fn restore(&mut self) {
        let (Some(input), Some(original)) = (&self.input, self.original.take()) else { return };
        if !in_foreground(input) {
            return;
        }
        let restored = tcgetattr(input).and_then(|mut termios| {
            original.apply(&mut termios);
            tcsetattr(input, SetArg::TCSANOW, &termios)
        });
        if let Err(e) = restored {
            tracing::warn!("setting the terminal back: {e}");
        }
    }
}

/// An open file description of our own, non-blocking, where that can be had; else a duplicate.
fn own(fd: BorrowedFd<'_>, access: OFlag) -> io::Result<File> {
    let file = File::from(fd.try_clone_to_owned()?);
    let shared = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
    let meta = file.metadata()?;
    // A regular file opened anew would start at its beginning.
    if meta.is_file() {
        return Ok(file);
    }
    let anew = OpenOptions::new()
        .read(access == OFlag::O_RDONLY)
        .write(access == OFlag::O_WRONLY)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY | (shared & OFlag::O_APPEND)).bits())
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()));
    Ok(anew.unwrap_or(file))
}

/// Whether an access would not wait.
fn ready(file: &File, events: PollFlags) -> bool {
    let mut fds = [PollFd::new(file.as_fd(), events)];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..))
}

/// Whether this process may touch the terminal: one in the background would be stopped by the kernel for it.
fn in_foreground(input: &File) -> bool {
    match tcgetpgrp(input) {
        Ok(group) => group == getpgrp(),
        // No terminal, or not this session's: no job control.
        Err(e) => e == Errno::ENOTTY,
    }
}

/// Raw, but for output processing: log lines go to the same terminal.
fn make_raw(input: &File) -> io::Result<TerminalState> {
    let mut termios = tcgetattr(input)?;
    let original = TerminalState::of(&termios);
    cfmakeraw(&mut termios);
    termios.output_flags |= OutputFlags::OPOST;
    tcsetattr(input, SetArg::TCSANOW, &termios)?;
    Ok(original)
}
