//! The process that the guest runs in while its own executes the new binary.
//!
//! 1. It runs the binary that the guest's process runs now, whatever lies at its path: `/proc/self/exe`.
//! 2. It takes the guest by a transfer, and gives it to the first that takes it at one of two sockets: the new image, or
//!    the old binary that the new image has executed again.
//! 3. Where neither does, it keeps the guest.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};

use super::child::Start;
use super::inherit;
use crate::cpr::error::{HandoverError, InPhase};
use crate::cpr::report::Phase;

/// The numbers of the sockets that a stopover process inherits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sockets {
    /// Where the guest comes from.
    pub from: RawFd,
    /// Where the new image will be.
    pub onward: RawFd,
    /// Where the old binary will be, if the new image executes it again.
    pub back: RawFd,
}

impl Sockets {
    /// What `--from` says: `stopover:FROM,ONWARD,BACK`.
    fn word(self) -> String {
        format!("stopover:{},{},{}", self.from, self.onward, self.back)
    }

    /// Reads `FROM,ONWARD,BACK`.
    pub fn parse(text: &str) -> Option<Self> {
        let [from, onward, back] = inherit::numbers(text)?[..] else { return None };
        Some(Self { from, onward, back })
    }
}

/// A stopover process, as the guest's own process holds it.
#[derive(Debug)]
pub struct Stopover {
    child: Child,
    /// The new image's end of a socket to it.
    pub onward: OwnedFd,
    /// The old binary's end of a socket to it.
    pub back: OwnedFd,
}

impl Stopover {
    /// Starts it, and gives the socket that the guest goes over.
    pub fn start() -> Result<(Self, UnixStream), HandoverError> {
        let pair = || -> std::io::Result<(UnixStream, OwnedFd)> {
            let (ours, theirs) = UnixStream::pair()?;
            Ok((ours, theirs.into()))
        };
        let starting = "starting a stopover process for the guest";
        let start = || -> std::io::Result<(Self, UnixStream)> {
            let (channel, from) = pair()?;
            let (onward_ours, onward) = pair()?;
            let (back_ours, back) = pair()?;
            let sockets =
                Sockets { from: from.as_raw_fd(), onward: onward.as_raw_fd(), back: back.as_raw_fd() };
            let start = Start {
                program: Path::new("/proc/self/exe"),
                leading: &[],
                from: sockets.word(),
                inherited: &[&from, &onward, &back],
                errors: Stdio::inherit(),
            };
            let child = start.spawn()?;
            Ok((Self { child, onward: onward_ours.into(), back: back_ours.into() }, channel))
        };
        start().map_err(|error| format!("{starting}: {error}")).in_phase(Phase::Connect)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it: the guest did not go there.
    pub fn end(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            tracing::warn!("ending the stopover process {}: {error}", self.pid());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_sockets_are_read_as_they_were_told() {
        let sockets = Sockets { from: 5, onward: 7, back: 9 };
        assert_eq!(Sockets::parse(sockets.word().strip_prefix("stopover:").unwrap()), Some(sockets));
        for text in ["", "5", "5,7", "5,7,9,11", "5,7,2", "5,7,x", "5,7,-1"] {
            assert_eq!(Sockets::parse(text), None, "{text}");
        }
    }
}
