//! Asking a keeper for the guest's memory.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::{passing, socket_of};
use crate::cpr::liveupdate::LiveUpdateError;

/// How long a keeper may take to answer: it may be preserving all of the guest's RAM.
const PATIENCE: Duration = Duration::from_mins(2);

/// A saved guest's memory. The keeper looks whether somebody has claimed the guest when this ends.
#[derive(Debug)]
pub struct Visit {
    /// The stamp and the state, as in a state file with RAM that has none.
    pub state: File,
    /// RAM, in the order of its blocks; to be taken.
    pub ram: Vec<OwnedFd>,
    /// The keeper's socket.
    _keeper: UnixStream,
}

impl Visit {
    fn new(guest: &str, files: Vec<OwnedFd>, keeper: UnixStream) -> Result<Self, LiveUpdateError> {
        let found = files.len();
        let mut files = files.into_iter();
        match files.next() {
            Some(state) if found > 1 => {
                Ok(Self { state: state.into(), ram: files.collect(), _keeper: keeper })
            }
            _ => Err(LiveUpdateError::Sent { name: guest.into(), found }),
        }
    }
}

fn connect(guest: &str) -> io::Result<Option<UnixStream>> {
    match UnixStream::connect(socket_of(guest)) {
        Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused].contains(&error.kind()) => {
            Ok(None)
        }
        connected => connected.map(Some),
    }
}

/// Whether a guest of that name waits with a keeper.
pub fn is_there(guest: &str) -> bool {
    !matches!(connect(guest), Ok(None))
}

/// Asks the keeper of a guest, if there is one.
pub fn ask(guest: &str) -> Result<Option<Visit>, LiveUpdateError> {
    let doing = || format!("asking the keeper at {}", socket_of(guest).display());
    let Some(stream) = connect(guest).map_err(LiveUpdateError::io(doing()))? else { return Ok(None) };
    stream.set_read_timeout(Some(PATIENCE)).map_err(LiveUpdateError::io(doing()))?;
    let files = passing::receive(&stream).map_err(LiveUpdateError::io(doing()))?;
    if files.is_empty() {
        return Err(LiveUpdateError::Gone { name: guest.into() });
    }
    Visit::new(guest, files, stream).map(Some)
}
