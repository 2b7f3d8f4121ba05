//! What a guest is saved to: a file beside its RAM, a file with its RAM in it, or memory that the host's next kernel finds.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::copy::{self, CopyError, Written};
use super::file::{FileError, Published, StateFile};
use super::parts;
use super::place::Place;
use crate::cpr::error::{HandoverError, InPhase};
use crate::cpr::liveupdate::{self, keeper::Keeper};
use crate::cpr::ownership::PAGE_SIZE;
use crate::cpr::report::Phase;
use crate::devices::virtio::balloon::Balloon;
use crate::machine::Machine;
use crate::memory::{self, RamBlock, RamFate, StampLocation};

/// Room that is reserved before the guest stops: for the machine, and for each vCPU. More than state has ever taken.
const ROOM: u64 = 1 << 20;
const ROOM_PER_VCPU: u64 = 64 << 10;

/// What a guest is saved to, with all made ready that takes time.
pub(super) enum Medium {
    /// A file; the RAM stays where it is.
    Beside(StateFile),
    /// A file with the RAM in it.
    With {
        /// The file.
        file: StateFile,
        /// The bytes reserved in it.
        room: u64,
    },
    /// Memory that the kernel keeps, and the RAM with it.
    Preserved(Preserved),
}

/// Memory that the kernel keeps. Without it the guest's RAM is what it was.
pub(super) struct Preserved {
    /// The state's.
    state: Arc<File>,
    /// Its bytes.
    size: u64,
    keeper: Keeper,
    /// Goes on last.
    _still: Still,
}

impl Preserved {
    /// Whether somebody has it who will keep it.
    pub(super) fn is_kept(&self) -> bool {
        self.keeper.lives()
    }

    /// Leaves it to its keeper.
    pub(super) fn leave(self) {
        self.keeper.leave();
    }
}

/// A balloon that changes no RAM meanwhile: the kernel does not let it.
pub(super) struct Still(Option<Arc<Balloon>>);

impl Still {
    fn hold(machine: &Machine) -> Self {
        let balloon = machine.devices().balloon.clone();
        if let Some(balloon) = &balloon {
            balloon.hold();
        }
        Self(balloon)
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        if let Some(balloon) = &self.0 {
            balloon.release();
        }
    }
}

impl Medium {
    /// Makes it, and says where the stamp goes. The guest runs.
    pub(super) fn prepare(
        machine: &Machine,
        block: &RamBlock,
        place: &Place,
        fate: RamFate,
    ) -> Result<(Self, StampLocation), HandoverError> {
        let room = ROOM + ROOM_PER_VCPU * u64::from(machine.vcpu_count()) + machine.rom_size();
        let path = match place {
            Place::LiveUpdate(name) => {
                return Self::preserve(machine, block, name, room).in_phase(Phase::Prepare);
            }
            Place::File(path) => path,
        };
        let mut file = StateFile::create(path).in_phase(Phase::Prepare)?;
        if fate == RamFate::Copied {
            let room = room + copy::most(block).in_phase(Phase::Prepare)?;
            file.reserve(room).in_phase(Phase::Prepare)?;
            return Ok((Self::With { file, room }, copy::blank_stamp().in_phase(Phase::Prepare)?));
        }
        file.reserve(room).in_phase(Phase::Prepare)?;
        let gone = "the guest's RAM would not outlive this process";
        let location = block.stamp_location().ok_or_else(|| HandoverError::new(Phase::Prepare, gone))?;
        parts::enter(block, machine.config().uuid).in_phase(Phase::Prepare)?;
        Ok((Self::Beside(file), location))
    }

    fn preserve(
        machine: &Machine,
        block: &RamBlock,
        name: &str,
        room: u64,
    ) -> Result<(Self, StampLocation), Box<dyn std::error::Error>> {
        let size = (copy::DATA + room).next_multiple_of(PAGE_SIZE);
        let state = Arc::new(memory::memfd("state", size, None, &[])?);
        let still = Still::hold(machine);
        let keeper = liveupdate::preserve(name, &state, block)?;
        let location = StampLocation { file: Arc::clone(&state), offset: 0, granularity: PAGE_SIZE };
        Ok((Self::Preserved(Preserved { state, size, keeper, _still: still }), location))
    }

    /// Whether a guest that was offered in it can be taken back still.
    pub(super) fn can_be_taken_back(&self) -> bool {
        !matches!(self, Self::With { .. })
    }

    /// Copies the RAM, if it goes there; nothing where it does not.
    pub(super) fn copy_ram(
        &self,
        block: &RamBlock,
        cancelled: &(dyn Fn() -> bool + Sync),
        told: copy::Told<'_>,
    ) -> Result<Option<Written>, HandoverError> {
        let Self::With { file, room } = self else { return Ok(None) };
        let written = copy::write(block, file.file(), cancelled, told).map_err(|error| match error {
            CopyError::Cancelled => HandoverError::cancelled(Phase::Save),
            // A full disk is named as such.
            CopyError::Io { doing, source } => {
                HandoverError::new(Phase::Save, file.write_failed(&doing, *room, source))
            }
            error => HandoverError::new(Phase::Save, error),
        })?;
        Ok(Some(written))
    }

    /// Writes the state where it can be found by nobody who would take it before the guest is offered.
    pub(super) fn write(&self, state: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
        let Self::Preserved(Preserved { state: file, size, .. }) = self else { return Ok(()) };
        let whole = [state, copy::trailer(state.len() as u64).as_ref()].concat();
        let length = whole.len() as u64;
        let at = size.checked_sub(length).filter(|at| *at >= copy::DATA);
        let at = at.ok_or_else(|| format!("{length} bytes of state; {size} were made ready for it"))?;
        Ok(file.write_all_at(&whole, at)?)
    }

    /// Puts the state there, behind `at` bytes that were written; gives what is to be left to its keeper, if there is such.
    pub(super) fn publish(
        self,
        location: &StampLocation,
        at: u64,
        mut state: Vec<u8>,
    ) -> Result<Option<Preserved>, FileError> {
        match self {
            Self::Beside(file) => file.publish(at, &state).and_then(Published::keep)?,
            // Its word is in the file from here on, and nobody can reach it before the file has its name. Then the guest is given
            // away, whatever comes.
            Self::With { file, .. } => {
                let trailer = copy::trailer(state.len() as u64);
                state.extend_from_slice(trailer.as_ref());
                file.write_first(location).and_then(|()| file.publish(at, &state)).map(Published::leave)?;
            }
            Self::Preserved(preserved) => return Ok(Some(preserved)),
        }
        Ok(None)
    }
}
