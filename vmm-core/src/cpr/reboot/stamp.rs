//! The stamp: what ties RAM that stays in a file or DAX device to the state file it was saved with.
//!
//! 1. RAM of another guest, of a cold boot, or that has run on since the state was saved, is refused, and said to be so.
//! 2. A state file can be loaded once: the loader claims the guest by the ownership word in the stamp.
//! 3. Until it is claimed, the source can take the guest back, and the state file is then worth nothing.
//!
//! The stamp is one page (4096 bytes) beside the guest's RAM in the same file, outside what the guest sees: the
//! ownership word's page (`cpr::ownership`), in which the guest's identity, the RAM's size and a generation follow. The
//! generation is drawn at random for each save, and goes into the state file too.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;

use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::parts::{self, PartsError};
use crate::config::Uuid;
use crate::cpr::format::{Section, SectionKind};
use crate::cpr::ownership::{Claim, Ownership, OwnershipError, PAGE_SIZE, PageError, SharedPage, State};
use crate::memory::StampLocation;

/// What a stamp begins with.
pub(super) const MAGIC: [u8; 8] = *b"cprstamp";

/// Version of the stamp's layout; 2 is that of a table of [`parts`].
pub(super) const VERSION: u32 = 1;

/// The section that a state file names its RAM by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamStamp {
    /// The guest's identity, in the order of its printed bytes.
    pub uuid: [u8; 16],
    /// Which save of it.
    pub generation: u128,
    /// Bytes of RAM.
    pub ram_size: u64,
}

impl Section for RamStamp {
    const KIND: SectionKind = SectionKind::RamStamp;
    const VERSION: u16 = 1;
    const OLDEST: u16 = 1;
}

/// What follows the ownership word in the page.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Fields {
    uuid: [u8; 16],
    generation: [u8; 16],
    ram_size: U64,
    /// CRC-32 of the fields above.
    crc: U32,
}

const FIELDS_LEN: usize = size_of::<Fields>();

/// Why RAM and state file do not go together.
#[derive(Debug, thiserror::Error)]
pub enum StampError {
    /// There is no stamp: nobody saved a guest here.
    #[error("this RAM carries no stamp: it is of a cold boot or was never a guest's ({0})")]
    NoStamp(PageError),
    /// The stamp was written by another version.
    #[error("this RAM's stamp is of version {found}; this build reads version {expected}")]
    Version {
        /// The version it is of.
        found: u32,
        /// The version this build reads.
        expected: u32,
    },
    /// The stamp does not have its checksum.
    #[error("this RAM's stamp is damaged: checksum {found:#010x}; expected {expected:#010x}")]
    Damaged {
        /// CRC-32 of what is there.
        found: u32,
        /// CRC-32 that was written down.
        expected: u32,
    },
    /// Another guest's RAM.
    #[error("this RAM is of guest {found}; the state was saved of guest {expected}")]
    OtherGuest {
        /// Whose RAM it is.
        found: Uuid,
        /// Whose state it is.
        expected: Uuid,
    },
    /// The guest's RAM, of another size.
    #[error("this RAM was stamped with {found} bytes; the state was saved with {expected}")]
    Size {
        /// Bytes by the stamp.
        found: u64,
        /// Bytes by the state file.
        expected: u64,
    },
    /// The guest was loaded, booted or saved again since.
    #[error(
        "this RAM has run on since the state was saved: it is of generation {found:032x}; expected {expected:032x}"
    )]
    RanOn {
        /// Generation of the stamp.
        found: u128,
        /// Generation of the state file.
        expected: u128,
    },
    /// The save was not finished, or the source has taken the guest back.
    #[error(
        "this RAM's guest was not given up, or was taken back, after the state was saved: its source runs on with it"
    )]
    NotOffered,
    /// A saved guest waits in it.
    #[error(
        "a guest that was saved waits in this RAM for its state file to be loaded: load that; \
         only to give that guest up, boot with --discard-saved or remove this RAM"
    )]
    Waiting,
    /// The state was loaded before.
    #[error("this state was loaded already: the guest has run on from it, and it cannot be loaded again")]
    Loaded,
    /// The file ends before its stamp.
    #[error("the file of this RAM is {size} bytes; its stamp needs {needed}")]
    TooShort {
        /// Bytes of the file.
        size: u64,
        /// Bytes that the RAM and its stamp need.
        needed: u64,
    },
    /// Of a device that several guests have parts of.
    #[error(transparent)]
    Parts(#[from] PartsError),
    /// The file cannot be looked at.
    #[error("looking at the size of this RAM's file: {0}")]
    Io(#[source] io::Error),
    /// The stamp cannot be mapped, or its word holds what it cannot.
    #[error("this RAM's stamp: {0}")]
    Ownership(#[from] OwnershipError),
}

/// The stamp of RAM in a file or DAX device, mapped.
#[derive(Debug)]
pub struct Stamp {
    ownership: Ownership,
}

impl Stamp {
    /// Owner: puts a stamp at `offset` (a multiple of [`PAGE_SIZE`]) of RAM that it boots a guest in. Whatever was there
    /// before, no state file goes with this RAM until the next [`renew`](Self::renew).
    ///
    /// `granularity` is what offset and length of a mapping must be multiples of: the page size, or a DAX device's
    /// alignment.
    pub fn create(
        file: &File,
        offset: u64,
        granularity: u64,
        uuid: Uuid,
        ram_size: u64,
        claim: &Claim,
    ) -> Result<Self, StampError> {
        let page = map(file, offset, granularity)?;
        page.begin(MAGIC, VERSION);
        let stamp = Self { ownership: Ownership::over(page)? };
        stamp.renew(uuid, ram_size, claim);
        Ok(stamp)
    }

    /// Maps the stamp at `offset` of RAM that a guest was saved in; places as in [`create`](Self::create).
    pub fn open(file: &File, offset: u64, granularity: u64) -> Result<Self, StampError> {
        let page = map(file, offset, granularity)?;
        page.check(MAGIC, VERSION).map_err(|e| match e {
            PageError::Version { found: parts::VERSION, .. } => PartsError::Divided.into(),
            PageError::Version { found, expected } => StampError::Version { found, expected },
            other => StampError::NoStamp(other),
        })?;
        Ok(Self { ownership: Ownership::over(page)? })
    }

    /// Owner: draws a new generation, so that every state file written before is worth nothing, and gives the section
    /// for the one about to be written. The guest is stopped.
    pub fn renew(&self, uuid: Uuid, ram_size: u64, claim: &Claim) -> RamStamp {
        let generation = u128::from_le_bytes(Uuid::random().0);
        let mut fields = Fields::new_zeroed();
        fields.uuid = uuid.0;
        fields.generation = generation.to_le_bytes();
        fields.ram_size = ram_size.into();
        fields.crc = crc(&fields).into();
        self.ownership.page().set_fields(fields.as_bytes());
        // The word last: a loader that came before this, and may have seen the older fields, cannot claim any more.
        self.ownership.renew(claim);
        RamStamp { uuid: uuid.0, generation, ram_size }
    }

    /// Loader: checks that this is the RAM that `state` was saved with and that the guest stands offered. Changes
    /// nothing: the guest is not this process's before [`Ownership::claim`].
    pub fn check(&self, state: &RamStamp) -> Result<(), StampError> {
        let fields: Fields = zerocopy::transmute!(self.ownership.page().fields::<FIELDS_LEN>());
        let (found, expected) = (crc(&fields), fields.crc.get());
        if found != expected {
            return Err(StampError::Damaged { found, expected });
        }
        if fields.uuid != state.uuid {
            return Err(StampError::OtherGuest { found: Uuid(fields.uuid), expected: Uuid(state.uuid) });
        }
        if fields.ram_size.get() != state.ram_size {
            return Err(StampError::Size { found: fields.ram_size.get(), expected: state.ram_size });
        }
        let found = u128::from_le_bytes(fields.generation);
        if found != state.generation {
            return Err(StampError::RanOn { found, expected: state.generation });
        }
        match self.ownership.state()? {
            State::Offered => Ok(()),
            State::Source => Err(StampError::NotOffered),
            State::Target => Err(StampError::Loaded),
        }
    }

    /// Has the word outlive a loss of power, where the RAM does: a guest that was claimed must not be found waiting.
    pub fn persist(&self) -> io::Result<()> {
        self.ownership.page().persist()
    }

    /// The ownership word: the source offers and takes back by it, the loader claims.
    pub fn ownership(&self) -> &Ownership {
        &self.ownership
    }
}

/// Refuses to boot a guest in RAM in which a saved one waits, or may wait for a build that knows its stamp. One whose word is no
/// state of it is nobody's.
pub fn refuse_lost(location: &StampLocation) -> Result<(), StampError> {
    match refuse_waiting(location) {
        Err(StampError::Ownership(OwnershipError::Corrupt(_))) => Ok(()),
        Err(StampError::Version { .. }) => Err(StampError::Waiting),
        found => found,
    }
}

/// Refuses RAM that waits, with its stamp there, to be loaded by its state file.
pub fn refuse_waiting(location: &StampLocation) -> Result<(), StampError> {
    let stamp = match Stamp::open(&location.file, location.offset, location.granularity) {
        Err(StampError::NoStamp(_)) => return Ok(()),
        stamp => stamp?,
    };
    match stamp.ownership.state()? {
        State::Offered => Err(StampError::Waiting),
        State::Source | State::Target => Ok(()),
    }
}

fn crc(fields: &Fields) -> u32 {
    crc32fast::hash(&fields.as_bytes()[..FIELDS_LEN - size_of::<U32>()])
}

/// Maps the stamp's page, after making sure that a regular file has it (touching a page past a file's end kills).
fn map(file: &File, offset: u64, granularity: u64) -> Result<SharedPage, StampError> {
    let metadata = file.metadata().map_err(StampError::Io)?;
    let needed = offset.saturating_add(PAGE_SIZE);
    // A DAX device tells no size here; the kernel refuses a mapping past its end.
    if !metadata.file_type().is_char_device() && metadata.len() < needed {
        return Err(StampError::TooShort { size: metadata.len(), needed });
    }
    Ok(SharedPage::map(file.as_fd(), offset, granularity).map_err(OwnershipError::from)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    const RAM: u64 = 4 << 20;
    const GUEST: Uuid = Uuid([3; 16]);

    /// RAM of a guest with its stamp.
    fn ram() -> (File, Stamp) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(RAM + PAGE_SIZE).unwrap();
        let stamp = Stamp::create(&file, RAM, PAGE_SIZE, GUEST, RAM, &Claim::cold_boot()).unwrap();
        (file, stamp)
    }

    /// RAM of a guest that was saved and given up, and its state file's section.
    fn saved() -> (File, Stamp, RamStamp) {
        let (file, stamp) = ram();
        let claim = Claim::cold_boot();
        let state = stamp.renew(GUEST, RAM, &claim);
        stamp.ownership().offer(claim).unwrap();
        (file, stamp, state)
    }

    fn open(file: &File) -> Stamp {
        Stamp::open(file, RAM, PAGE_SIZE).unwrap()
    }

    #[test]
    fn state_is_loaded_with_its_ram_once() {
        let (file, source, state) = saved();
        let (loader, second) = (open(&file), open(&file));
        loader.check(&state).unwrap();
        second.check(&state).unwrap();
        let _claim = loader.ownership().claim().unwrap();
        assert!(second.ownership().claim().is_err());
        assert!(matches!(second.check(&state), Err(StampError::Loaded)));
        assert!(matches!(open(&file).check(&state), Err(StampError::Loaded)));
        assert!(matches!(source.ownership().take_back(), Err(OwnershipError::ClaimedByTarget)));
    }

    #[test]
    fn a_boot_is_refused_where_a_guest_waits_or_may_and_nowhere_else() {
        let location = |file: &File| StampLocation {
            file: std::sync::Arc::new(file.try_clone().unwrap()),
            offset: RAM,
            granularity: PAGE_SIZE,
        };
        let (cold, _) = ram();
        refuse_lost(&location(&cold)).unwrap();
        let empty = tempfile::tempfile().unwrap();
        empty.set_len(RAM + PAGE_SIZE).unwrap();
        refuse_lost(&location(&empty)).unwrap();
        let (file, _, _) = saved();
        assert!(matches!(refuse_lost(&location(&file)), Err(StampError::Waiting)));
        let _claim = open(&file).ownership().claim().unwrap();
        refuse_lost(&location(&file)).unwrap();
        // Another build's.
        let (file, _, _) = saved();
        file.write_all_at(&3u32.to_le_bytes(), RAM + 8).unwrap();
        assert!(matches!(refuse_lost(&location(&file)), Err(StampError::Waiting)));
    }

    #[test]
    fn who_loaded_a_guest_can_save_it_again() {
        let (file, _, first) = saved();
        let loader = open(&file);
        let claim = loader.ownership().claim().unwrap();
        let second = loader.renew(GUEST, RAM, &claim);
        loader.ownership().offer(claim).unwrap();
        assert!(matches!(open(&file).check(&first), Err(StampError::RanOn { .. })));
        open(&file).check(&second).unwrap();
    }

    #[test]
    fn a_guest_taken_back_makes_its_state_file_worthless() {
        let (file, source, state) = saved();
        let loader = open(&file);
        loader.check(&state).unwrap();
        let claim = source.ownership().take_back().unwrap();
        assert!(matches!(loader.check(&state), Err(StampError::NotOffered)));
        // Even where it is saved again between a loader's check and its claim.
        source.renew(GUEST, RAM, &claim);
        source.ownership().offer(claim).unwrap();
        assert!(matches!(loader.ownership().claim(), Err(OwnershipError::TakenBack)));
        assert!(matches!(open(&file).check(&state), Err(StampError::RanOn { .. })));
    }

    #[test]
    fn a_save_that_did_not_come_to_its_offer_cannot_be_loaded() {
        let (file, stamp) = ram();
        let state = stamp.renew(GUEST, RAM, &Claim::cold_boot());
        assert!(matches!(open(&file).check(&state), Err(StampError::NotOffered)));
    }

    #[test]
    fn a_cold_boot_in_the_same_ram_makes_older_state_worthless() {
        let (file, _, state) = saved();
        Stamp::create(&file, RAM, PAGE_SIZE, GUEST, RAM, &Claim::cold_boot()).unwrap();
        assert!(matches!(open(&file).check(&state), Err(StampError::RanOn { .. })));
    }

    #[test]
    fn ram_of_another_guest_or_size_is_named() {
        let (file, _, state) = saved();
        let error = open(&file).check(&RamStamp { uuid: [4; 16], ..state }).unwrap_err().to_string();
        assert!(error.contains("guest 03030303-") && error.contains("guest 04040404-"), "{error}");
        let error = open(&file).check(&RamStamp { ram_size: 5, ..state }).unwrap_err().to_string();
        assert_eq!(error, "this RAM was stamped with 4194304 bytes; the state was saved with 5");
    }

    #[test]
    fn ram_without_a_stamp_with_a_damaged_one_or_too_short_for_one_is_refused() {
        let (file, _, state) = saved();
        let no_stamp = Stamp::open(&file, 0, PAGE_SIZE).unwrap_err();
        assert!(no_stamp.to_string().contains("carries no stamp"), "{no_stamp}");
        let too_short = Stamp::open(&file, RAM + PAGE_SIZE, PAGE_SIZE).unwrap_err();
        assert!(too_short.to_string().contains("4198400 bytes; its stamp needs 4202496"), "{too_short}");
        for at in 0..(FIELDS_LEN as u64) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, RAM + 16 + at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], RAM + 16 + at).unwrap();
            assert!(matches!(open(&file).check(&state), Err(StampError::Damaged { .. })), "byte {at}");
            file.write_all_at(&byte, RAM + 16 + at).unwrap();
        }
        open(&file).check(&state).unwrap();
        file.write_all_at(&[3], RAM + 8).unwrap();
        let newer = Stamp::open(&file, RAM, PAGE_SIZE).unwrap_err().to_string();
        assert_eq!(newer, "this RAM's stamp is of version 3; this build reads version 1");
    }
}
