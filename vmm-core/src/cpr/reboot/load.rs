//! The new process's side: the state from where it waits, the RAM found in place, taken out of the file, or kept by the kernel.

use std::sync::Arc;

use super::copy::{Arrival, Copied, CopyError, Lost};
use super::file::{self, FileError, Saved};
use super::parts;
use super::place::Place;
use super::stamp::{RamStamp, Stamp, StampError};
use super::waiting;
use crate::config::{Backing, MachineConfig, MemoryConfig, Uuid};
use crate::cpr::Mode;
use crate::cpr::blockers::Blocker;
use crate::cpr::format::{FormatError, StateReader};
use crate::cpr::liveupdate::keeper::Visit;
use crate::cpr::liveupdate::{self, LiveUpdateError};
use crate::cpr::ownership::{OwnershipError, PAGE_SIZE};
use crate::cpr::report::{PhaseTime, Report, Stopwatch};
use crate::machine::run_state::RunState;
use crate::machine::state::MachineState;
use crate::machine::{Ending, Incoming, LoadError, Machine, Overrides, SavedRam, Source};
use crate::memory::{MemoryError, RamBlock};
use crate::priority::Precedence;
use crate::x86::clock::{ClockState, Stood};

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
    /// The RAM cannot be looked at.
    #[error("{path}: whether its guest waits is not known, for its RAM is not to be had: {source}")]
    Ram {
        /// Where the guest would wait.
        path: String,
        /// Why.
        source: Box<MemoryError>,
    },
    /// A state file has the name of another guest.
    #[error("{path}: it holds guest '{found}'; expected '{expected}'")]
    OtherGuest {
        /// Where the guest waits.
        path: String,
        /// Who waits there.
        found: String,
        /// Whose name it has.
        expected: String,
    },
    /// Two saved guests have one name.
    #[error(
        "guest '{name}' waits in memory, as luo:{name}, and in {file}: load the one that is to go on with cpr-load resume, and remove the \
         other"
    )]
    Twice {
        /// Their name.
        name: String,
        /// The file of one.
        file: String,
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
    state_bytes: u64,
    incoming: Incoming,
    stamp: Stamp,
    ram: FoundRam,
}

/// Where the RAM of a saved guest was found.
enum FoundRam {
    InPlace,
    Copied(Arc<Copied>),
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
    let state_bytes = state.len() as u64;
    let mut reader = StateReader::parse(&state).map_err(format)?;
    let found = reader.header().mode;
    if found != Mode::CprReboot {
        return Err(RebootError::Mode { path: name(), found });
    }
    let expected: RamStamp = reader.take(0).map_err(format)?;
    let checked = |stamp: Result<Stamp, StampError>| {
        let stamp = stamp.and_then(|stamp| {
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
        let stamp = checked(Stamp::open(copied.file(), 0, PAGE_SIZE))?;
        let incoming = build(&mut reader, SavedRam::Copied)?;
        return Ok(Found { reader, state_bytes, incoming, stamp, ram: FoundRam::Copied(Arc::new(copied)) });
    }
    if let Some(mut visit) = preserved {
        let stamp = checked(Stamp::open(&visit.state, 0, PAGE_SIZE))?;
        let ram = std::mem::take(&mut visit.ram).into_iter();
        let incoming = build(&mut reader, SavedRam::Preserved(ram))?;
        return Ok(Found {
            reader,
            state_bytes,
            incoming,
            stamp,
            ram: FoundRam::Preserved { _visit: visit },
        });
    }
    // Nor is anything opened but the RAM before it is known to be the state's.
    let in_place = |source: LoadError| RebootError::Load { path: name(), source: Box::new(source) };
    let (memory, block) = ram_in_place(&reader, &overrides.set).map_err(in_place)?;
    let block = block.ok_or_else(|| RebootError::NoRam { path: name() })?;
    if let Backing::Dax { path: device, pmem: false, .. } = &memory.backing {
        let clock: ClockState = reader.peek(0).map_err(format)?;
        let reset = clock
            .host_was_reset()
            .map_err(|error| RebootError::Load { path: name(), source: Box::new(error.into()) })?;
        if reset {
            return Err(RebootError::Reset { path: name(), device: device.display().to_string() });
        }
    }
    let stamp = parts::stamp_of(&block, Uuid(expected.uuid)).transpose();
    let stamp = checked(stamp.ok_or_else(|| RebootError::NoRam { path: name() })?)?;
    // The machine locks it again; what the stamp maps would keep it locked.
    block.release_lock().map_err(|error| in_place(error.into()))?;
    drop(block);
    let incoming = build(&mut reader, SavedRam::Stays)?;
    Ok(Found { reader, state_bytes, incoming, stamp, ram: FoundRam::InPlace })
}

/// The RAM of a guest that stays where it was, by its configuration and what differs here.
fn ram_in_place(reader: &StateReader, set: &[String]) -> Result<(MemoryConfig, Option<RamBlock>), LoadError> {
    let MachineState { config, .. } = reader.peek(0)?;
    let mut config = MachineConfig::from_toml(&config)?;
    for assignment in set {
        config.set(assignment)?;
    }
    let block = waiting::main_ram(reader).map(|state| RamBlock::reopen(&config.memory, &state));
    Ok((config.memory, block.transpose()?))
}

impl Found {
    /// Checks the RAM that is in the file.
    fn verify(&self, place: &Place) -> Result<(), RebootError> {
        let FoundRam::Copied(copied) = &self.ram else { return Ok(()) };
        let ram = self.incoming.ram_block().map_or(0, RamBlock::size);
        copied.verify(ram).map_err(|source| RebootError::Copy { path: place.to_string(), source })
    }
}

/// Loads a guest from where it waits, and enters it; says for how long it stood.
pub fn load(place: &Place, overrides: &Overrides) -> Result<(Machine, Report), RebootError> {
    let name = || place.to_string();
    let format = |source| RebootError::Format { path: name(), source };
    let mut watch = Stopwatch::start();
    let mut precedence = Precedence::take();
    let Found { mut reader, state_bytes, mut incoming, stamp, ram } = find(place, overrides)?;
    watch.lap("target: build");
    (overrides.admit)(incoming.config()).map_err(|source| RebootError::Admit { path: name(), source })?;
    let copy = |source| RebootError::Copy { path: name(), source };
    let arrival = match &ram {
        FoundRam::Copied(copied) => {
            // That takes all processors, for as long as there is RAM.
            drop(precedence.take());
            fill(place, &mut incoming, copied, overrides.lazy.as_ref()).map_err(copy)?
        }
        FoundRam::InPlace | FoundRam::Preserved { .. } => None,
    };
    if matches!(ram, FoundRam::Copied(_)) && arrival.is_none() {
        watch.lap("fill RAM");
    }
    let clock: ClockState = reader.peek(0).map_err(format)?;
    let loaded = incoming
        .load(&mut reader, &mut watch)
        // What RAM that cannot be had did to the load is not the reason.
        .map_err(|source| match arrival.as_ref().and_then(|arrival| arrival.refused()) {
            Some(error) => copy(error),
            None => RebootError::Load { path: name(), source: Box::new(source) },
        })?;
    reader.finish().map_err(format)?;
    overrides.entrance.begin().map_err(|source| RebootError::Ending { path: name(), source })?;
    arrival.as_ref().map_or(Ok(()), |arrival| arrival.claim()).map_err(copy)?;
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
    drop(precedence);
    if let Some(arrival) = arrival {
        arrival.go();
    }
    let report = report(&machine, &clock, &watch, state_bytes, matches!(ram, FoundRam::Copied(_)));
    // Its keeper finds that out, and ends.
    drop(ram);
    Ok((machine, report))
}

/// Fills the RAM, or has it come in while the guest runs, where that is wanted and can be.
fn fill(
    place: &Place,
    incoming: &mut Incoming,
    copied: &Arc<Copied>,
    lazy: Option<&Lost>,
) -> Result<Option<Arc<Arrival>>, CopyError> {
    let Some(block) = incoming.ram_block() else { return Ok(None) };
    let Some(lost) = lazy else { return copied.fill(block).map(|()| None) };
    match incoming.missing_pages() {
        Ok(pages) => {
            let (path, lost) = (place.to_string(), Arc::clone(lost));
            let named: Lost = Arc::new(move |why| {
                tracing::error!("{path}: {why}; the guest has run without it, and cannot go on");
                lost(why);
            });
            let arrival = Arc::new(Arrival::begin(Arc::clone(copied), pages, block.size(), named)?);
            incoming.fill_by(Arc::clone(&arrival));
            Ok(Some(arrival))
        }
        Err(why) => {
            tracing::warn!("{place}: all of the RAM is read before the guest runs: {why}");
            copied.fill(block).map(|()| None)
        }
    }
}

/// How a load went, and what came before it.
fn report(
    machine: &Machine,
    clock: &ClockState,
    watch: &Stopwatch,
    state_bytes: u64,
    copied: bool,
) -> Report {
    let (total_us, ram) = (watch.total(), machine.ram_size());
    // A guest that was paused did not stand for it.
    let ran = machine.run_state() == RunState::Running || machine.will_be_woken();
    let stood = ran.then(|| clock.stood()).and_then(Result::ok);
    let mut phases = stood.map_or(Vec::new(), |stood| before(stood, total_us));
    phases.extend_from_slice(watch.laps());
    Report {
        mode: Mode::CprReboot,
        downtime_us: stood.map(|stood| stood.ns / 1000),
        clock: stood.map(|stood| stood.by),
        total_us,
        phases,
        state_bytes,
        descriptors: 0,
        vcpus: machine.vcpu_count(),
        ram_kept: if copied { 0 } else { ram },
        ram_copied: if copied { ram } else { 0 },
    }
}

/// What a guest waited for before a load of `load_us` began.
fn before(stood: Stood, load_us: u64) -> Vec<PhaseTime> {
    let waited = (stood.ns / 1000).saturating_sub(load_us);
    let phase = |name: &str, us| PhaseTime { phase: name.into(), us };
    match stood.up_ns {
        None => vec![phase("waited", waited)],
        Some(up_ns) => {
            let boot = (up_ns / 1000).saturating_sub(load_us).min(waited);
            vec![phase("until the next kernel", waited - boot), phase("its boot until the load", boot)]
        }
    }
}

/// What is in the way of loading a guest here. Touches nothing but RAM that is made for it, in memory; a guest that the kernel has
/// kept has a keeper afterwards.
pub fn check(place: &Place, set: &[String]) -> Vec<Blocker> {
    // The serial port's back end is not opened: that could replace a socket or make a file.
    let set = set.iter().cloned().chain(["serial=null".to_owned()]).collect();
    let (events, admit) = (Arc::new(drop), Arc::new(|_: &MachineConfig| Ok(())));
    let entrance = Arc::default();
    let overrides = Overrides { set, paused: true, events, admit, trial: true, lazy: None, entrance };
    match find(place, &overrides).and_then(|found| found.verify(place)) {
        Ok(()) => Vec::new(),
        Err(RebootError::Load { source, .. }) if !source.blockers().is_empty() => source.blockers(),
        Err(error) => vec![Blocker::new("state", error.to_string())],
    }
}
