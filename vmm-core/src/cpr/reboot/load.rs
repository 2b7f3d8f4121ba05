//! The new process's side: the state from its file, the RAM found in place.

use std::path::Path;
use std::sync::Arc;

use super::file::{self, FileError};
use super::stamp::{RamStamp, Stamp, StampError};
use crate::config::MachineConfig;
use crate::cpr::Mode;
use crate::cpr::blockers::Blocker;
use crate::cpr::format::{FormatError, StateReader};
use crate::cpr::ownership::OwnershipError;
use crate::cpr::report::Stopwatch;
use crate::machine::{Incoming, LoadError, Machine, Overrides, Source};

/// Why a saved guest was not loaded. It is where it was: in its file and its RAM.
#[derive(Debug, thiserror::Error)]
pub enum RebootError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file's contents.
    #[error("{path}: {source}")]
    Format {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: FormatError,
    },
    /// The state was written for another mode.
    #[error("{path}: it holds a guest saved for {found}; expected {}", Mode::CprReboot)]
    Mode {
        /// The file.
        path: String,
        /// The mode.
        found: Mode,
    },
    /// The machine could not be built or loaded.
    #[error("{path}: {source}")]
    Load {
        /// The file.
        path: String,
        /// Why.
        source: Box<LoadError>,
    },
    /// The RAM is not the file's.
    #[error("{path}: {source}")]
    Stamp {
        /// The file.
        path: String,
        /// Why.
        source: StampError,
    },
    /// Somebody else has the guest.
    #[error("{path}: {source}")]
    Ownership {
        /// The file.
        path: String,
        /// Why.
        source: OwnershipError,
    },
    /// This process cannot make ready for the guest.
    #[error("{path}: {source}")]
    Admit {
        /// The file.
        path: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The configuration has RAM that leaves no stamp.
    #[error("{path}: its RAM cannot have outlived the process that saved it")]
    NoRam {
        /// The file.
        path: String,
    },
}

/// A saved guest with its machine built, and its RAM known to be its own.
struct Found {
    reader: StateReader,
    incoming: Incoming,
    stamp: Stamp,
}

fn find(path: &Path, overrides: &Overrides) -> Result<Found, RebootError> {
    let name = || path.display().to_string();
    let format = |source| RebootError::Format { path: name(), source };
    let bytes = file::read(path)?;
    let mut reader = StateReader::parse(&bytes).map_err(format)?;
    let found = reader.header().mode;
    if found != Mode::CprReboot {
        return Err(RebootError::Mode { path: name(), found });
    }
    let expected: RamStamp = reader.take(0).map_err(format)?;
    let incoming = Incoming::build(&mut reader, Source::Reopened, overrides)
        .map_err(|source| RebootError::Load { path: name(), source: Box::new(source) })?;
    let location = incoming.ram_block().and_then(crate::memory::RamBlock::stamp_location);
    let location = location.ok_or_else(|| RebootError::NoRam { path: name() })?;
    let stamp = Stamp::open(&location.file, location.offset, location.granularity)
        .map_err(|source| RebootError::Stamp { path: name(), source })?;
    stamp.check(&expected).map_err(|source| RebootError::Stamp { path: name(), source })?;
    Ok(Found { reader, incoming, stamp })
}

/// Loads a guest from its file and enters it.
pub fn load(path: &Path, overrides: &Overrides) -> Result<Machine, RebootError> {
    let name = || path.display().to_string();
    let Found { mut reader, incoming, stamp } = find(path, overrides)?;
    (overrides.admit)(incoming.config()).map_err(|source| RebootError::Admit { path: name(), source })?;
    let mut watch = Stopwatch::start();
    let loaded = incoming
        .load(&mut reader, &mut watch)
        .map_err(|source| RebootError::Load { path: name(), source: Box::new(source) })?;
    reader.finish().map_err(|source| RebootError::Format { path: name(), source })?;
    // The point of no return: this file can be loaded by nobody after this.
    let claim =
        stamp.ownership().claim().map_err(|source| RebootError::Ownership { path: name(), source })?;
    Ok(loaded.enter(claim, &mut watch))
}

/// What is in the way of loading a file here. Touches nothing.
pub fn check(path: &Path, set: &[String]) -> Vec<Blocker> {
    // The serial port's back end is not opened: that could replace a socket or make a file.
    let set = set.iter().cloned().chain(["serial=null".to_owned()]).collect();
    let (events, admit) = (Arc::new(drop), Arc::new(|_: &MachineConfig| Ok(())));
    let overrides = Overrides { set, paused: true, events, admit };
    match find(path, &overrides) {
        Ok(_) => Vec::new(),
        Err(RebootError::Load { source, .. }) if !source.blockers().is_empty() => source.blockers(),
        Err(error) => vec![Blocker::new("state", error.to_string())],
    }
}
