//! The new process's side: the state from where it waits, the RAM found in place, taken out of the file, or kept by the kernel.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use super::copy::{Copied, CopyError};
use super::file::{self, FileError, Saved};
use super::place::Place;
use super::stamp::{RamStamp, Stamp, StampError};
use crate::config::{Backing, MachineConfig};
use crate::cpr::Mode;
use crate::cpr::blockers::Blocker;
use crate::cpr::format::{FormatError, SectionKind, StateReader};
use crate::cpr::liveupdate::keeper::Visit;
use crate::cpr::liveupdate::{self, LiveUpdateError};
use crate::cpr::ownership::{OwnershipError, PAGE_SIZE};
use crate::cpr::report::Stopwatch;
use crate::machine::state::MachineState;
use crate::machine::{Ending, Incoming, LoadError, Machine, Overrides, SavedRam, Source};
use crate::memory::{RamBlock, RamBlockState, RamKind};
use crate::x86::clock::ClockState;

/// Why a saved guest was not loaded. It is where it was: in its file and its RAM.
#[derive(Debug, thiserror::Error)]
pub enum RebootError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The kernel's memory.
    #[error(transparent)]
    LiveUpdate(#[from] LiveUpdateError),
    /// The file's contents.
    #[error("{path}: {source}")]
    Format {
        /// Where the guest waits.
        path: String,
        /// What is wrong with it.
        source: FormatError,
    },
    /// The state was written for another mode.
    #[error("{path}: it holds a guest saved for {found}; expected {}", Mode::CprReboot)]
    Mode {
        /// Where the guest waits.
        path: String,
        /// The mode.
        found: Mode,
    },
    /// The machine could not be built or loaded.
    #[error("{path}: {source}")]
    Load {
        /// Where the guest waits.
        path: String,
        /// Why.
        source: Box<LoadError>,
    },
    /// The RAM is not the file's.
    #[error("{path}: {source}")]
    Stamp {
        /// Where the guest waits.
        path: String,
        /// Why.
        source: StampError,
    },
    /// The RAM in the file.
    #[error("{path}: {source}")]
    Copy {
        /// Where the guest waits.
        path: String,
        /// Why.
        source: CopyError,
    },
    /// Somebody else has the guest.
    #[error("{path}: {source}")]
    Ownership {
        /// Where the guest waits.
        path: String,
        /// Why.
        source: OwnershipError,
    },
    /// This process is to end.
    #[error("{path}: {source}")]
    Ending {
        /// Where the guest waits.
        path: String,
        /// Why.
        source: Ending,
    },
    /// This process cannot make ready for the guest.
    #[error("{path}: {source}")]
    Admit {
        /// Where the guest waits.
        path: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Memory that may have lost what was in it.
    #[error(
        "{path}: the host seems to have been reset since the guest was saved, and not only to have gone into another kernel: its TSC and \
         its wall clock do not agree on the time since; what was in {device} may be lost. If that is persistent memory: --set memory.pmem=on; \
         if only the clock was set, set it right"
    )]
    Reset {
        /// Where the guest waits.
        path: String,
        /// The DAX device.
        device: String,
    },
    /// The configuration has RAM that leaves no stamp.
    #[error("{path}: its RAM cannot have outlived the process that saved it")]
    NoRam {
        /// Where the guest waits.
        path: String,
    },
}

/// A saved guest with its machine built, and its RAM known to be its own.
struct Found {
    reader: StateReader,
    incoming: Incoming,
    stamp: Stamp,
    ram: FoundRam,
}

/// Where the RAM of a saved guest was found.
enum FoundRam {
    InPlace,
    Copied(Copied),
    /// Visited until it is known whose the guest is.
    Preserved {
        _visit: Visit,
    },
}

/// What waits in a place: the state, and where RAM is that is not where the configuration says.
enum Waits {
    InFile(Saved),
    Preserved(Vec<u8>, Visit),
}

fn open(place: &Place) -> Result<Waits, RebootError> {
    match place {
        Place::File(path) => Ok(Waits::InFile(file::read(path)?)),
        Place::LiveUpdate(guest) => {
            let mut visit = liveupdate::find(guest)?;
            let (memory, state) = file::state_in(&visit.state, &place.to_string())?;
            visit.state = memory;
            Ok(Waits::Preserved(state, visit))
        }
    }
}

fn find(place: &Place, overrides: &Overrides) -> Result<Found, RebootError> {
    let name = || place.to_string();
    let format = |source| RebootError::Format { path: name(), source };
    let (state, copy, preserved) = match open(place)? {
        Waits::InFile(Saved { state, ram }) => (state, ram, None),
        Waits::Preserved(state, visit) => (state, None, Some(visit)),
    };
    let mut reader = StateReader::parse(&state).map_err(format)?;
    let found = reader.header().mode;
    if found != Mode::CprReboot {
        return Err(RebootError::Mode { path: name(), found });
    }
    let expected: RamStamp = reader.take(0).map_err(format)?;
    let stamp_of = |file: &File, offset, granularity| {
        let stamp = Stamp::open(file, offset, granularity).and_then(|stamp| {
            stamp.check(&expected)?;
            Ok(stamp)
        });
        stamp.map_err(|source| RebootError::Stamp { path: name(), source })
    };
    // Where the RAM is in the file, its stamp is, too, and tells before anything is made whether it may be loaded.
    let build = |reader: &mut StateReader, ram| {
        Incoming::build(reader, Source::Reopened(ram), overrides)
            .map_err(|source| RebootError::Load { path: name(), source: Box::new(source) })
    };
    if let Some((file, chunks)) = copy {
        let copied = Copied::new(reader.take(0).map_err(format)?, file, chunks)
            .map_err(|source| RebootError::Copy { path: name(), source })?;
        let stamp = stamp_of(copied.file(), 0, PAGE_SIZE)?;
        let incoming = build(&mut reader, SavedRam::Copied)?;
        return Ok(Found { reader, incoming, stamp, ram: FoundRam::Copied(copied) });
    }
    if let Some(mut visit) = preserved {
        let stamp = stamp_of(&visit.state, 0, PAGE_SIZE)?;
        let ram = std::mem::take(&mut visit.ram).into_iter();
        let incoming = build(&mut reader, SavedRam::Preserved(ram))?;
        return Ok(Found { reader, incoming, stamp, ram: FoundRam::Preserved { _visit: visit } });
    }
    let incoming = build(&mut reader, SavedRam::Stays)?;
    if let Backing::Dax { path: device, pmem: false } = &incoming.config().memory.backing {
        let clock: ClockState = reader.peek(0).map_err(format)?;
        let reset = clock
            .host_was_reset()
            .map_err(|error| RebootError::Load { path: name(), source: Box::new(error.into()) })?;
        if reset {
            return Err(RebootError::Reset { path: name(), device: device.display().to_string() });
        }
    }
    let location = incoming.ram_block().and_then(RamBlock::stamp_location);
    let location = location.ok_or_else(|| RebootError::NoRam { path: name() })?;
    let stamp = stamp_of(&location.file, location.offset, location.granularity)?;
    Ok(Found { reader, incoming, stamp, ram: FoundRam::InPlace })
}

impl Found {
    /// Checks the RAM that is in the file.
    fn verify(&self, place: &Place) -> Result<(), RebootError> {
        let FoundRam::Copied(copied) = &self.ram else { return Ok(()) };
        let ram = self.incoming.ram_block().map_or(0, RamBlock::size);
        copied.verify(ram).map_err(|source| RebootError::Copy { path: place.to_string(), source })
    }
}

/// Whether a saved guest waits in what has this name, which is then not to be written over: nobody could load it any more. One that was
/// loaded, whose RAM is gone or has run on, or that is no state file, is nobody's.
pub fn is_waiting(path: &Path) -> Result<bool, FileError> {
    if !path.exists() {
        return Ok(false);
    }
    let Saved { state, ram } = file::look_at(path)?;
    let reader = match StateReader::parse(&state) {
        Ok(reader) => reader,
        // Another build's.
        Err(FormatError::FormatVersion { .. }) => return Ok(true),
        Err(_) => return Ok(false),
    };
    let Ok(expected) = reader.peek::<RamStamp>(0) else { return Ok(false) };
    let holds = |file: &File, offset, granularity| {
        Stamp::open(file, offset, granularity).and_then(|stamp| stamp.check(&expected)).is_ok()
    };
    if let Some((file, _)) = ram {
        return Ok(holds(&file, 0, PAGE_SIZE));
    }
    Ok(ram_of(&reader)
        .and_then(|block| block.stamp_location())
        .is_some_and(|at| holds(&at.file, at.offset, at.granularity)))
}

/// The RAM of a saved guest, if it is where its configuration says, and nobody runs on it.
fn ram_of(reader: &StateReader) -> Option<RamBlock> {
    let MachineState { config, .. } = reader.peek(0).ok()?;
    let memory = MachineConfig::from_toml(&config).ok()?.memory;
    let blocks = reader.instances(SectionKind::Ram).into_iter();
    let mut states = blocks.filter_map(|index| reader.peek::<RamBlockState>(index).ok());
    let state = states.find(|state| state.kind != RamKind::Rom)?;
    RamBlock::reopen(&memory, &state).ok()
}

/// Loads a guest from where it waits, and enters it.
pub fn load(place: &Place, overrides: &Overrides) -> Result<Machine, RebootError> {
    let name = || place.to_string();
    let Found { mut reader, incoming, stamp, ram } = find(place, overrides)?;
    (overrides.admit)(incoming.config()).map_err(|source| RebootError::Admit { path: name(), source })?;
    let mut watch = Stopwatch::start();
    if let (FoundRam::Copied(copied), Some(block)) = (&ram, incoming.ram_block()) {
        copied.fill(block).map_err(|source| RebootError::Copy { path: name(), source })?;
        watch.lap("fill RAM");
    }
    let loaded = incoming
        .load(&mut reader, &mut watch)
        .map_err(|source| RebootError::Load { path: name(), source: Box::new(source) })?;
    reader.finish().map_err(|source| RebootError::Format { path: name(), source })?;
    overrides.entrance.begin().map_err(|source| RebootError::Ending { path: name(), source })?;
    // The point of no return: this can be loaded by nobody after this.
    let claim =
        stamp.ownership().claim().map_err(|source| RebootError::Ownership { path: name(), source })?;
    let persisted = match &ram {
        FoundRam::Copied(copied) => copied.file().sync_data(),
        FoundRam::InPlace => stamp.persist(),
        FoundRam::Preserved { .. } => Ok(()),
    };
    if let Err(error) = persisted {
        // Who finds the file later could find it as if nobody had loaded it.
        tracing::error!("{}: that it was loaded may not be on disk: {error}; remove the file", name());
    }
    let machine = loaded.enter(claim, &mut watch);
    // Its keeper finds that out, and ends.
    drop(ram);
    Ok(machine)
}

/// What is in the way of loading a guest here. Touches nothing but RAM that is made for it, in memory; a guest that the kernel has
/// kept has a keeper afterwards.
pub fn check(place: &Place, set: &[String]) -> Vec<Blocker> {
    // The serial port's back end is not opened: that could replace a socket or make a file.
    let set = set.iter().cloned().chain(["serial=null".to_owned()]).collect();
    let (events, admit) = (Arc::new(drop), Arc::new(|_: &MachineConfig| Ok(())));
    let overrides = Overrides { set, paused: true, events, admit, trial: true, entrance: Arc::default() };
    match find(place, &overrides).and_then(|found| found.verify(place)) {
        Ok(()) => Vec::new(),
        Err(RebootError::Load { source, .. }) if !source.blockers().is_empty() => source.blockers(),
        Err(error) => vec![Blocker::new("state", error.to_string())],
    }
}
