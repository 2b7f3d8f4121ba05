//! The kinds of back end.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use super::check::{self, Access};
use super::pty::Pty;
use super::stdio::Stdio;
use super::unix::Unix;
use crate::config::ChardevConfig;
use crate::cpr::fds::{FdError, FdName, FdTable};

/// What came of reading.
#[derive(Debug)]
pub(super) enum Input {
    /// That many bytes.
    Bytes(usize),
    /// Nothing at present.
    Nothing,
    /// Nothing more will come.
    End,
}

/// What came of writing.
#[derive(Debug)]
pub(super) enum Output {
    /// That many bytes went out.
    Sent(usize),
    /// Nothing goes out at present.
    Full,
    /// There is no reader.
    Nobody,
    /// The bytes cannot be written.
    Failed(io::Error),
}

pub(super) fn read_from(source: &mut impl Read, buf: &mut [u8]) -> Input {
    loop {
        return match source.read(buf) {
            Ok(0) => Input::End,
            Ok(n) => Input::Bytes(n),
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) if e.kind() == ErrorKind::WouldBlock => Input::Nothing,
            Err(_) => Input::End,
        };
    }
}

pub(super) fn write_to(sink: &mut impl Write, bytes: &[u8]) -> Output {
    loop {
        return match sink.write(bytes) {
            Ok(0) => Output::Full,
            Ok(n) => Output::Sent(n),
            Err(e) => match e.kind() {
                ErrorKind::Interrupted => continue,
                ErrorKind::WouldBlock => Output::Full,
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Output::Nobody,
                _ => Output::Failed(e),
            },
        };
    }
}

/// A back end and its descriptors.
#[derive(Debug)]
pub(super) enum Backend {
    Null,
    Stdio(Stdio),
    File(File),
    Unix(Unix),
    Pty(Pty),
}

impl Backend {
    /// Opens it by its configuration.
    pub(super) fn open(config: &ChardevConfig) -> io::Result<Self> {
        Ok(match config {
            ChardevConfig::Null => Self::Null,
            ChardevConfig::Stdio => Self::Stdio(Stdio::open()?),
            ChardevConfig::File(path) => Self::File(
                OpenOptions::new()
                    .append(true)
                    .create(true)
                    .mode(0o600)
                    .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
                    .open(path)?,
            ),
            ChardevConfig::Unix(path) => Self::Unix(Unix::listen(path)?),
            ChardevConfig::Pty => Self::Pty(Pty::open()?),
        })
    }

    /// Takes its descriptors over.
    pub(super) fn adopt(id: &str, config: &ChardevConfig, fds: &mut FdTable) -> Result<Self, FdError> {
        let name = |what: &str| FdName::new(format!("{id}.{what}"), 0);
        Ok(match config {
            ChardevConfig::Null => Self::Null,
            ChardevConfig::Stdio => {
                let (input, output) = (name("in"), name("out"));
                let input_fd = match fds.take_optional(&input) {
                    Some(fd) => Some(check::stream(&input, fd, Access::Read)?),
                    None => None,
                };
                let output_fd = check::stream(&output, fds.take(&output)?, Access::Write)?;
                Self::Stdio(Stdio::with(input_fd, output_fd))
            }
            ChardevConfig::File(_) => {
                let file = name("file");
                Self::File(check::stream(&file, fds.take(&file)?, Access::Write)?.into())
            }
            ChardevConfig::Unix(path) => {
                let (listen, client) = (name("listen"), name("client"));
                let listen_fd = check::socket(&listen, fds.take(&listen)?, true)?;
                let client_fd = match fds.take_optional(&client) {
                    Some(fd) => Some(check::socket(&client, fd, false)?),
                    None => None,
                };
                Self::Unix(Unix::with(listen_fd, client_fd, path))
            }
            ChardevConfig::Pty => {
                let pty = name("pty");
                let fd = check::pty(&pty, fds.take(&pty)?)?;
                let doing = "reading its path";
                Self::Pty(Pty::with(fd).map_err(|source| FdError::Io { name: pty, doing, source })?)
            }
        })
    }

    /// Its descriptors, and what each is called.
    pub(super) fn descriptors(&self) -> Vec<(&'static str, BorrowedFd<'_>)> {
        match self {
            Self::Null => Vec::new(),
            Self::Stdio(stdio) => {
                let input = stdio.input.as_ref().map(|input| ("in", input.as_fd()));
                input.into_iter().chain([("out", stdio.output.as_fd())]).collect()
            }
            Self::File(file) => vec![("file", file.as_fd())],
            Self::Unix(unix) => {
                let client = unix.client.as_ref().map(|client| ("client", client.stream.as_fd()));
                [("listen", unix.listener.as_fd())].into_iter().chain(client).collect()
            }
            Self::Pty(pty) => vec![("pty", pty.master.as_fd())],
        }
    }

    pub(super) fn read(&mut self, buf: &mut [u8]) -> Input {
        match self {
            Self::Null | Self::File(_) => Input::Nothing,
            Self::Stdio(stdio) => stdio.read(buf),
            Self::Unix(unix) => unix.read(buf),
            Self::Pty(pty) => pty.read(buf),
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Output {
        match self {
            Self::Null => Output::Sent(bytes.len()),
            Self::Stdio(stdio) => stdio.write(bytes),
            Self::File(file) => write_to(file, bytes),
            Self::Unix(unix) => unix.write(bytes),
            Self::Pty(pty) => pty.write(bytes),
        }
    }
}
