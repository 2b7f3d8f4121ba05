//! What a guest is saved to: a file beside its RAM, a file with its RAM in it, or memory that the host's next kernel finds.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::copy::{self, CopyError, Written};
use super::file::{Published, StateFile};
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
    Preserved {
        /// The state's, and its bytes.
        state: Arc<File>,
        size: u64,
        keeper: Keeper,
        _still: Still,
    },
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
        let room = ROOM + ROOM_PER_VCPU * u64::from(machine.vcpu_count());
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
        Ok((Self::Preserved { state, size, keeper, _still: still }, location))
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
    ) -> Result<Option<Written>, HandoverError> {
        let Self::With { file, room } = self else { return Ok(None) };
        let written = copy::write(block, file.file(), cancelled).map_err(|error| match error {
            CopyError::Cancelled => HandoverError::cancelled(Phase::Save),
            // A full disk is named as such.
            CopyError::Io { doing, source } => {
                HandoverError::new(Phase::Save, file.write_failed(&doing, *room, source))
            }
            error => HandoverError::new(Phase::Save, error),
        })?;
        Ok(Some(written))
    }

    /// Puts the state there, behind `at` bytes that were written. A keeper is to be left to itself when that stays.
    pub(super) fn publish(
        self,
        location: &StampLocation,
        at: u64,
        mut state: Vec<u8>,
    ) -> Result<Option<Keeper>, Box<dyn std::error::Error>> {
        let trailer = copy::trailer(state.len() as u64);
        match self {
            Self::Beside(file) => file.publish(at, &state).and_then(Published::keep)?,
            // Its word is in the file from here on, and nobody can reach it before the file has its name. Then the guest is given
            // away, whatever comes.
            Self::With { file, .. } => {
                state.extend_from_slice(trailer.as_ref());
                file.write_first(location).and_then(|()| file.publish(at, &state)).map(Published::leave)?;
            }
            Self::Preserved { state: file, size, keeper, .. } => {
                state.extend_from_slice(trailer.as_ref());
                let length = state.len() as u64;
                let at = size.checked_sub(length).filter(|at| *at >= copy::DATA);
                let at =
                    at.ok_or_else(|| format!("{length} bytes of state; {size} were made ready for it"))?;
                file.write_all_at(&state, at)?;
                return Ok(Some(keeper));
            }
        }
        Ok(None)
    }
}
