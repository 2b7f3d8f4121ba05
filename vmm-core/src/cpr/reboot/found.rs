//! A saved guest where it waits: its machine is built, and its RAM is found in place, taken out of the file, or kept by the kernel.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use super::copy::Copied;
use super::error::{RebootError, Refusal};
use super::file::{self, Saved};
use super::parts;
use super::place::Place;
use super::stamp::{RamStamp, Stamp};
use super::waiting;
use crate::config::{Backing, MachineConfig, Uuid};
use crate::cpr::Mode;
use crate::cpr::format::StateReader;
use crate::cpr::liveupdate::{self, keeper::Visit};
use crate::cpr::ownership::PAGE_SIZE;
use crate::machine::state::MachineState;
use crate::machine::{Incoming, LoadError, Overrides, SavedRam, Source};
use crate::memory::RamBlock;
use crate::x86::clock::ClockState;

/// A saved guest with its machine built, and its RAM known to be its own.
pub(super) struct Found {
    pub(super) reader: StateReader,
    pub(super) state_bytes: u64,
    pub(super) incoming: Incoming,
    pub(super) stamp: Stamp,
    pub(super) ram: FoundRam,
}

/// Where the RAM of a saved guest was found.
pub(super) enum FoundRam {
    InPlace,
    Copied(Arc<Copied>),
    /// Visited until it is known whose the guest is.
    Preserved {
        _visit: Visit,
    },
}

/// What waits in a place beside the state: where RAM is that is not where the configuration says.
enum Beside {
    Nothing,
    Chunks(File, Range<u64>),
    Preserved(Visit),
}

fn open(place: &Place) -> Result<(Vec<u8>, Beside), RebootError> {
    match place {
        Place::File(path) => {
            let Saved { state, ram } = file::read(path)?;
            Ok((state, ram.map_or(Beside::Nothing, |(file, chunks)| Beside::Chunks(file, chunks))))
        }
        Place::LiveUpdate(guest) => {
            let mut visit = liveupdate::find(guest)?;
            let (memory, state) = file::state_in(&visit.state, &place.to_string())?;
            visit.state = memory;
            Ok((state, Beside::Preserved(visit)))
        }
    }
}

impl Found {
    /// Finds the guest that waits in a place. It may be that another process finds it, too: who claims it has it.
    pub(super) fn find(place: &Place, overrides: &Overrides) -> Result<Self, RebootError> {
        let (state, beside) = open(place)?;
        Self::build(&state, beside, overrides).map_err(|why| why.of(place))
    }

    fn build(state: &[u8], beside: Beside, overrides: &Overrides) -> Result<Self, Refusal> {
        let mut reader = StateReader::parse(state)?;
        let found = reader.header().mode;
        if found != Mode::CprReboot {
            return Err(Refusal::Mode { found });
        }
        let expected: RamStamp = reader.take(0)?;
        // Nothing is made, and nothing opened but the RAM, before that is known to be the state's.
        let (stamp, saved, ram) = match beside {
            Beside::Nothing => (in_place(&reader, overrides, &expected)?, SavedRam::Stays, FoundRam::InPlace),
            Beside::Chunks(file, chunks) => {
                let copied = Copied::new(reader.take(0)?, file, chunks)?;
                let stamp = Stamp::open(copied.file(), 0, PAGE_SIZE)?;
                (stamp, SavedRam::Copied, FoundRam::Copied(Arc::new(copied)))
            }
            Beside::Preserved(mut visit) => {
                let stamp = Stamp::open(&visit.state, 0, PAGE_SIZE)?;
                let ram = std::mem::take(&mut visit.ram).into_iter();
                (stamp, SavedRam::Preserved(ram), FoundRam::Preserved { _visit: visit })
            }
        };
        stamp.check(&expected)?;
        let incoming = Incoming::build(&mut reader, Source::Reopened(saved), overrides)?;
        Ok(Self { reader, state_bytes: state.len() as u64, incoming, stamp, ram })
    }

    /// Checks the RAM that is in the file.
    pub(super) fn verify(&self) -> Result<(), Refusal> {
        let FoundRam::Copied(copied) = &self.ram else { return Ok(()) };
        Ok(copied.verify(self.incoming.ram_block().map_or(0, RamBlock::size))?)
    }
}

/// The stamp of RAM that stays where it was, by the guest's configuration and what differs here.
fn in_place(reader: &StateReader, overrides: &Overrides, expected: &RamStamp) -> Result<Stamp, Refusal> {
    let MachineState { config, .. } = reader.peek(0)?;
    let mut config = MachineConfig::from_toml(&config).map_err(LoadError::from)?;
    for assignment in &overrides.set {
        config.set(assignment).map_err(LoadError::from)?;
    }
    let state = waiting::main_ram(reader).ok_or(Refusal::NoRam)?;
    let block = RamBlock::reopen(&config.memory, &state).map_err(LoadError::from)?;
    if let Backing::Dax { path: device, pmem: false, .. } = &config.memory.backing {
        let clock: ClockState = reader.peek(0)?;
        if clock.host_was_reset().map_err(LoadError::from)? {
            return Err(Refusal::Reset { device: device.display().to_string() });
        }
    }
    let stamp = parts::stamp_of(&block, Uuid(expected.uuid))?.ok_or(Refusal::NoRam)?;
    // The machine locks it again; what the stamp maps would keep it locked.
    block.release_lock().map_err(LoadError::from)?;
    Ok(stamp)
}
