//! Why a saved guest is not loaded.

use std::fmt::Display;

use super::copy::CopyError;
use super::file::FileError;
use super::stamp::StampError;
use crate::cpr::Mode;
use crate::cpr::format::FormatError;
use crate::cpr::liveupdate::LiveUpdateError;
use crate::cpr::ownership::OwnershipError;
use crate::machine::{Ending, LoadError};
use crate::memory::MemoryError;

/// Why a saved guest was not loaded. It is where it was: in its file and its RAM.
#[derive(Debug, thiserror::Error)]
pub enum RebootError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The kernel's memory.
    #[error(transparent)]
    LiveUpdate(#[from] LiveUpdateError),
    /// What waits there.
    #[error("{place}: {source}")]
    Refused {
        /// Where the guest waits.
        place: String,
        /// Why.
        source: Refusal,
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
}

/// Why what waits in a place is not loaded.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The state.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// It was written for another mode.
    #[error("it holds a guest saved for {found}; expected {}", Mode::CprReboot)]
    Mode {
        /// The mode.
        found: Mode,
    },
    /// It is of another guest than its file's name says.
    #[error("it holds guest '{found}'; expected '{expected}'")]
    OtherGuest {
        /// Who waits there.
        found: String,
        /// Whose name it has.
        expected: String,
    },
    /// The configuration has RAM that leaves no stamp.
    #[error("its RAM cannot have outlived the process that saved it")]
    NoRam,
    /// The RAM cannot be looked at.
    #[error("whether its guest waits is not known, for its RAM is not to be had: {0}")]
    Ram(#[source] Box<MemoryError>),
    /// The RAM may have lost what was in it.
    #[error(
        "the host seems to have been reset since the guest was saved, and not only to have gone into another kernel: its TSC and its wall \
         clock do not agree on the time since; what was in {device} may be lost. If that is persistent memory: --set memory.pmem=on; if only \
         the clock was set, set it right"
    )]
    Reset {
        /// The DAX device.
        device: String,
    },
    /// The RAM is not the state's.
    #[error(transparent)]
    Stamp(#[from] StampError),
    /// The RAM in the file.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The machine could not be built or loaded.
    #[error(transparent)]
    Load(Box<LoadError>),
    /// This process cannot make ready for the guest.
    #[error(transparent)]
    Admit(#[from] Box<dyn std::error::Error + Send + Sync>),
    /// This process is to end.
    #[error(transparent)]
    Ending(#[from] Ending),
    /// Somebody else has the guest.
    #[error(transparent)]
    Ownership(#[from] OwnershipError),
}

impl From<LoadError> for Refusal {
    fn from(why: LoadError) -> Self {
        Self::Load(Box::new(why))
    }
}

impl Refusal {
    /// The error, of what waits there.
    pub(super) fn of(self, place: impl Display) -> RebootError {
        RebootError::Refused { place: place.to_string(), source: self }
    }
}
