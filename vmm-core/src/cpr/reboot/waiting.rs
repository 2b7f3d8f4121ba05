//! Whether a saved guest waits somewhere, without touching it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use super::file::{self, FileError, Saved};
use super::load::RebootError;
use super::parts::{self, PartsError};
use super::place::{Place, state_file};
use super::stamp::{RamStamp, Stamp, StampError};
use crate::config::{Backing, MachineConfig, MemoryConfig, Uuid};
use crate::cpr::format::{FormatError, SectionKind, StateReader};
use crate::cpr::liveupdate;
use crate::cpr::ownership::PAGE_SIZE;
use crate::machine::state::MachineState;
use crate::memory::{MemoryError, RamBlock, RamBlockState, RamKind, is_in_memory};

/// Where a saved guest of this name waits: in memory (`luo:NAME`), or in `NAME.state` of a directory. Nowhere, if it was never saved, was
/// loaded, or its RAM has run on or is another's. What cannot be told is an error: a guest is not to be passed over.
pub fn find(name: &str, directory: &Path) -> Result<Option<Place>, RebootError> {
    let file = state_file(directory, name);
    let in_file = match saved_in(&file)? {
        Some(Saved { state, ram }) => {
            let path = file.display().to_string();
            let format = |source| RebootError::Format { path: path.clone(), source };
            let reader = StateReader::parse(&state).map_err(format)?;
            let MachineState { config, .. } = reader.peek(0).map_err(format)?;
            let found =
                MachineConfig::from_toml(&config).map_or_else(|_| String::new(), |config| config.name);
            if found != name {
                return Err(RebootError::OtherGuest { path, found, expected: name.into() });
            }
            stamp_of(&reader, ram).and_then(|(stamp, expected)| is_offered(&stamp, &expected)).or_else(
                |unknown| match unknown {
                    Unknown::Format(source) => Err(format(source)),
                    Unknown::Stamp(source) => not_waiting(source)
                        .map_err(|source| RebootError::Stamp { path: path.clone(), source }),
                    Unknown::Ram(source) if ended_with_memory(&source, &reader) => Ok(false),
                    Unknown::Ram(source) => {
                        Err(RebootError::Ram { path: path.clone(), source: source.into() })
                    }
                    Unknown::NoRam => Err(RebootError::NoRam { path: path.clone() }),
                },
            )?
        }
        None => false,
    };
    match (liveupdate::is_waiting(name)?, in_file) {
        (true, true) => Err(RebootError::Twice { name: name.into(), file: file.display().to_string() }),
        (true, false) => Ok(Some(Place::LiveUpdate(name.into()))),
        (false, true) => Ok(Some(Place::File(file))),
        (false, false) => Ok(None),
    }
}

/// Whether a saved guest waits in what has this name, which is then not to be written over: nobody could load it any more. One that was
/// loaded, whose RAM is gone or has run on, or that is no state file, is nobody's.
pub fn waits_in(path: &Path) -> Result<bool, FileError> {
    let Some(Saved { state, ram }) = saved_in(path)? else { return Ok(false) };
    Ok(match StateReader::parse(&state) {
        Ok(reader) => stamp_of(&reader, ram)
            .and_then(|(stamp, expected)| is_offered(&stamp, &expected))
            .unwrap_or(false),
        // Another build's.
        Err(FormatError::FormatVersion { .. }) => true,
        Err(_) => false,
    })
}

/// Gives a saved guest of this name up, wherever it waits: nobody can load it after this. One in a file is only looked for if there is a
/// directory.
pub fn give_up(name: &str, directory: Option<&Path>) -> Result<(), RebootError> {
    let claim = |path: String, stamp: &Stamp| {
        let claimed = stamp.ownership().claim();
        // Nobody enters it.
        drop(claimed.map_err(|source| RebootError::Ownership { path: path.clone(), source })?);
        tracing::warn!("the guest that waited in {path} is given up");
        stamp.persist().map_err(|source| RebootError::Stamp { path, source: StampError::Io(source) })
    };
    if liveupdate::is_waiting(name)? {
        let visit = liveupdate::find(name)?;
        let path = Place::LiveUpdate(name.into()).to_string();
        let stamp = Stamp::open(&visit.state, 0, PAGE_SIZE);
        claim(path.clone(), &stamp.map_err(|source| RebootError::Stamp { path, source })?)?;
    }
    let Some(file) = directory.map(|directory| state_file(directory, name)) else { return Ok(()) };
    let Some(Saved { state, ram }) = saved_in(&file)? else { return Ok(()) };
    // What cannot be read is nobody's to load, and what has run on neither.
    let Ok(reader) = StateReader::parse(&state) else { return Ok(()) };
    match stamp_of(&reader, ram) {
        Ok((stamp, expected)) if is_offered(&stamp, &expected).is_ok_and(|offered| offered) => {
            claim(file.display().to_string(), &stamp)
        }
        _ => Ok(()),
    }
}

/// What is in a file, if there is one.
fn saved_in(path: &Path) -> Result<Option<Saved>, FileError> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // Whatever else there is, reading says.
        Ok(_) | Err(_) => file::look_at(path).map(Some),
    }
}

/// Why it is not known whether a guest waits.
enum Unknown {
    Format(FormatError),
    Stamp(StampError),
    Ram(MemoryError),
    NoRam,
}

/// The stamp that goes with a state, and what must be in it.
fn stamp_of(reader: &StateReader, ram: Option<(File, Range<u64>)>) -> Result<(Stamp, RamStamp), Unknown> {
    let expected = reader.peek::<RamStamp>(0).map_err(Unknown::Format)?;
    let stamp = if let Some((file, _)) = ram {
        Stamp::open(&file, 0, PAGE_SIZE)
    } else {
        parts::stamp_of(&ram_of(reader)?, Uuid(expected.uuid)).transpose().ok_or(Unknown::NoRam)?
    };
    Ok((stamp.map_err(Unknown::Stamp)?, expected))
}

fn is_offered(stamp: &Stamp, expected: &RamStamp) -> Result<bool, Unknown> {
    stamp.check(expected).map(|()| true).map_err(Unknown::Stamp)
}

/// Whether a stamp says that no guest waits for this state.
fn not_waiting(why: StampError) -> Result<bool, StampError> {
    match why {
        StampError::NoStamp(_)
        | StampError::OtherGuest { .. }
        | StampError::Size { .. }
        | StampError::RanOn { .. }
        | StampError::NotOffered
        | StampError::Loaded
        | StampError::Parts(PartsError::NotThere { .. } | PartsError::Divided)
        | StampError::TooShort { .. } => Ok(false),
        StampError::Version { .. }
        | StampError::Parts(_)
        | StampError::Damaged { .. }
        | StampError::Waiting
        | StampError::Io(_)
        | StampError::Ownership(_) => Err(why),
    }
}

/// Whether RAM is not there because it was in memory, which a reset has emptied. Elsewhere it may be there later, as a disk that is not
/// mounted yet.
fn ended_with_memory(why: &MemoryError, reader: &StateReader) -> bool {
    let Ok(memory) = memory_of(reader) else { return false };
    let Backing::File { path } = &memory.backing else { return false };
    let directory = path.parent().and_then(|parent| File::open(parent).ok());
    why.is_not_found() && directory.is_some_and(|directory| is_in_memory(&directory))
}

fn memory_of(reader: &StateReader) -> Result<MemoryConfig, Unknown> {
    let MachineState { config, .. } = reader.peek(0).map_err(Unknown::Format)?;
    Ok(MachineConfig::from_toml(&config).map_err(|_| Unknown::NoRam)?.memory)
}

/// The RAM of a saved guest, if it is where its configuration says, and nobody runs on it.
fn ram_of(reader: &StateReader) -> Result<RamBlock, Unknown> {
    let memory = memory_of(reader)?;
    let state = main_ram(reader).ok_or(Unknown::NoRam)?;
    RamBlock::reopen(&memory, &state).map_err(Unknown::Ram)
}

/// What is written of a guest's main RAM.
pub(super) fn main_ram(reader: &StateReader) -> Option<RamBlockState> {
    let blocks = reader.instances(SectionKind::Ram).into_iter();
    let mut states = blocks.filter_map(|index| reader.peek::<RamBlockState>(index).ok());
    states.find(|state| state.kind != RamKind::Rom)
}
