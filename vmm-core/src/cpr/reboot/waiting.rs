//! Whether a saved guest waits somewhere, without touching it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use super::error::{RebootError, Refusal};
use super::file::{self, FileError, Saved};
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
        Some(saved) => waits(name, saved).map_err(|why| why.of(file.display()))?,
        None => false,
    };
    match (liveupdate::is_waiting(name)?, in_file) {
        (true, true) => Err(RebootError::Twice { name: name.into(), file: file.display().to_string() }),
        (true, false) => Ok(Some(Place::LiveUpdate(name.into()))),
        (false, true) => Ok(Some(Place::File(file))),
        (false, false) => Ok(None),
    }
}

/// Whether a guest of this name waits for what was read of its file.
fn waits(name: &str, Saved { state, ram }: Saved) -> Result<bool, Refusal> {
    let reader = StateReader::parse(&state)?;
    let MachineState { config, .. } = reader.peek(0)?;
    let found = MachineConfig::from_toml(&config).map_or_else(|_| String::new(), |config| config.name);
    if found != name {
        return Err(Refusal::OtherGuest { found, expected: name.into() });
    }
    match offered(&reader, ram) {
        Err(Refusal::Stamp(why)) => Ok(not_waiting(why)?),
        Err(Refusal::Ram(why)) if ended_with_memory(&why, &reader) => Ok(false),
        known => known.map(|_| true),
    }
}

/// Whether a saved guest waits in what has this name, which is then not to be written over: nobody could load it any more. One that was
/// loaded, whose RAM is gone or has run on, or that is no state file, is nobody's.
pub fn waits_in(path: &Path) -> Result<bool, FileError> {
    let Some(Saved { state, ram }) = saved_in(path)? else { return Ok(false) };
    Ok(match StateReader::parse(&state) {
        Ok(reader) => offered(&reader, ram).is_ok(),
        // Another build's.
        Err(FormatError::FormatVersion { .. }) => true,
        Err(_) => false,
    })
}

/// Gives a saved guest of this name up, wherever it waits: nobody can load it after this. One in a file is only looked for if there is a
/// directory.
pub fn give_up(name: &str, directory: Option<&Path>) -> Result<(), RebootError> {
    if liveupdate::is_waiting(name)? {
        let (place, visit) = (Place::LiveUpdate(name.into()), liveupdate::find(name)?);
        let stamp = Stamp::open(&visit.state, 0, PAGE_SIZE).map_err(Refusal::from);
        stamp.and_then(|stamp| take_away(&stamp, &place)).map_err(|why| why.of(&place))?;
    }
    let Some(file) = directory.map(|directory| state_file(directory, name)) else { return Ok(()) };
    let Some(Saved { state, ram }) = saved_in(&file)? else { return Ok(()) };
    // What cannot be read is nobody's to load, and what has run on neither.
    let Ok(reader) = StateReader::parse(&state) else { return Ok(()) };
    let Ok(stamp) = offered(&reader, ram) else { return Ok(()) };
    let place = Place::File(file);
    take_away(&stamp, &place).map_err(|why| why.of(&place))
}

/// Claims a guest that nobody enters.
fn take_away(stamp: &Stamp, place: &Place) -> Result<(), Refusal> {
    drop(stamp.ownership().claim()?);
    tracing::warn!("the guest that waited in {place} is given up");
    Ok(stamp.persist().map_err(StampError::Io)?)
}

/// What is in a file, if there is one.
fn saved_in(path: &Path) -> Result<Option<Saved>, FileError> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // Whatever else there is, reading says.
        Ok(_) | Err(_) => file::look_at(path).map(Some),
    }
}

/// The stamp of a guest that waits for its state to be loaded.
fn offered(reader: &StateReader, ram: Option<(File, Range<u64>)>) -> Result<Stamp, Refusal> {
    let expected = reader.peek::<RamStamp>(0)?;
    let stamp = if let Some((file, _)) = ram {
        Stamp::open(&file, 0, PAGE_SIZE)?
    } else {
        parts::stamp_of(&ram_of(reader)?, Uuid(expected.uuid))?.ok_or(Refusal::NoRam)?
    };
    stamp.check(&expected)?;
    Ok(stamp)
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

fn memory_of(reader: &StateReader) -> Result<MemoryConfig, Refusal> {
    let MachineState { config, .. } = reader.peek(0)?;
    Ok(MachineConfig::from_toml(&config).map_err(|_| Refusal::NoRam)?.memory)
}

/// The RAM of a saved guest, if it is where its configuration says, and nobody runs on it.
fn ram_of(reader: &StateReader) -> Result<RamBlock, Refusal> {
    let memory = memory_of(reader)?;
    let state = main_ram(reader).ok_or(Refusal::NoRam)?;
    RamBlock::reopen(&memory, &state).map_err(|why| Refusal::Ram(why.into()))
}

/// What is written of a guest's main RAM.
pub(super) fn main_ram(reader: &StateReader) -> Option<RamBlockState> {
    let blocks = reader.instances(SectionKind::Ram).into_iter();
    let mut states = blocks.filter_map(|index| reader.peek::<RamBlockState>(index).ok());
    states.find(|state| state.kind != RamKind::Rom)
}
