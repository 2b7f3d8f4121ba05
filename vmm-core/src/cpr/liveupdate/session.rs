//! A session: what of one guest outlives the kernel, for as long as somebody has it open.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::error::LiveUpdateError;
use super::ioctls::{self, NAME};

/// Where sessions come from.
pub(super) const NODE: &str = "/dev/liveupdate";
/// What a session's name begins with.
const PREFIX: &str = "cpr-";
/// How long others may have the node: one process at a time can.
const PATIENCE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(10);
/// No guest has more files.
const MOST: u64 = 64;

/// What a guest's session is called.
pub(super) fn name_of(guest: &str) -> Result<String, LiveUpdateError> {
    let name = format!("{PREFIX}{guest}");
    let usual = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if guest.is_empty() || name.len() >= NAME || guest.starts_with('.') || !guest.bytes().all(usual) {
        return Err(LiveUpdateError::Name { name: guest.into(), most: NAME - 1 - PREFIX.len() });
    }
    Ok(name)
}

/// A name as the kernel takes it.
fn padded(name: &str) -> [u8; NAME] {
    let mut bytes = [0; NAME];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    bytes
}

/// An open session.
#[derive(Debug)]
pub(super) struct Session {
    name: String,
    fd: OwnedFd,
}

impl Session {
    /// One for a guest that is to be saved.
    pub(super) fn create(guest: &str) -> Result<Self, LiveUpdateError> {
        let name = name_of(guest)?;
        match ioctls::session(device()?.as_fd(), &padded(&name), true) {
            Ok(fd) => Ok(Self { name, fd }),
            Err(Errno::EEXIST) => Err(LiveUpdateError::Waiting { name: guest.into() }),
            Err(error) => Err(LiveUpdateError::io(format!("making live update session '{name}'"))(error)),
        }
    }

    /// The one that the kernel before this has left of a guest, if it has. There is no second time.
    pub(super) fn retrieve(guest: &str) -> Result<Option<Self>, LiveUpdateError> {
        let session = name_of(guest)?;
        match ioctls::session(device()?.as_fd(), &padded(&session), false) {
            Ok(fd) => Ok(Some(Self { name: session, fd })),
            // There was none, or somebody has had it.
            Err(Errno::ENOENT | Errno::EINVAL) => Ok(None),
            Err(error) => {
                Err(LiveUpdateError::io(format!("retrieving live update session '{session}'"))(error))
            }
        }
    }

    /// Has a guest's memory outlive the kernel: its state's and its RAM's. The sizes stay what they are, and all of it is allocated.
    pub(super) fn preserve_all(&self, files: &[BorrowedFd<'_>]) -> Result<(), LiveUpdateError> {
        (0..).zip(files).try_for_each(|(token, file)| {
            let doing = || match token {
                0 => format!("preserving the state's memory in live update session '{}'", self.name),
                _ => format!("preserving the guest's RAM in live update session '{}'", self.name),
            };
            ioctls::preserve(self.fd.as_fd(), token, *file).map_err(LiveUpdateError::io(doing()))
        })
    }

    /// All files that have outlived their kernel, by their tokens from 0 on.
    pub(super) fn files(&self) -> Result<Vec<OwnedFd>, LiveUpdateError> {
        let mut files = Vec::new();
        for token in 0..MOST {
            match ioctls::retrieve(self.fd.as_fd(), token) {
                Ok(file) => files.push(file),
                Err(Errno::ENOENT) => break,
                Err(error) => {
                    let doing = format!(
                        "retrieving file {token} of live update session '{}', which is lost with that",
                        self.name
                    );
                    return Err(LiveUpdateError::io(doing)(error));
                }
            }
        }
        Ok(files)
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Session> for OwnedFd {
    fn from(session: Session) -> Self {
        session.fd
    }
}

/// Opens the node, once nobody else has it.
fn device() -> Result<File, LiveUpdateError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match OpenOptions::new().read(true).write(true).open(NODE) {
            Ok(device) => return Ok(device),
            Err(error) if error.raw_os_error() != Some(libc::EBUSY) => {
                return Err(LiveUpdateError::None { source: error });
            }
            Err(_) if Instant::now() > deadline => {
                return Err(LiveUpdateError::Busy { seconds: PATIENCE.as_secs() });
            }
            Err(_) => thread::sleep(RETRY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_called_after_its_guest_where_that_fits() {
        assert_eq!(name_of("web").unwrap(), "cpr-web");
        assert_eq!(name_of(&"w".repeat(59)).unwrap().len(), 63);
        for guest in ["", "a\0b", "/tmp/x", ".x", &"w".repeat(60)] {
            assert!(matches!(name_of(guest), Err(LiveUpdateError::Name { .. })), "{guest:?}");
        }
    }
}
