//! Several guests in one DAX device, each in its part.
//!
//! 1. Live guests exclude each other by the lock on what is theirs ([`RamBlock::extent`]); saved ones hold none.
//! 2. So who is saved is in the device's table, which is out of every guest's sight. A boot where one of them waits for its state file
//!    is refused; what else may lie in RAM, as a stamp that a guest forged, is not looked at.
//! 3. What is not in the table is not loaded, whatever its stamp says; and it is out of it before its RAM is another's.
//!
//! The table lies in the device's last unit (`table.rs`), where a guest that has all of the device has its stamp.

mod table;

use std::io;
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

pub use self::table::Part;
pub(super) use self::table::VERSION;
use self::table::{MOST, Table, Unreadable};
use super::stamp::{Stamp, StampError, refuse_lost};
use crate::config::Uuid;
use crate::machine::Waiting;
use crate::memory::{Extent, RamBlock, StampLocation, lock};

/// How long another process may have the table.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a guest cannot have a part of a device, or is not to be loaded from it.
#[derive(Debug, thiserror::Error)]
pub enum PartsError {
    /// Who has what cannot be told.
    #[error(
        "{device}: its table of parts is {found}; expected one of version {VERSION} with its checksum: who waits there is not \
         known; only to give all of them up, boot with --discard-saved"
    )]
    Unreadable {
        /// The device.
        device: String,
        /// What is there.
        found: String,
    },
    /// A saved guest waits in some of it.
    #[error(
        "guest {} was saved and waits in {device}, {}, for its state file to be loaded: load that, or boot elsewhere (there is \
         room in {free}); only to give that guest up, boot with --discard-saved", part.guest, Extent::Part(part.extent.clone())
    )]
    Waits {
        /// The device.
        device: String,
        /// Whose.
        part: Part,
        /// Where nobody is.
        free: String,
    },
    /// It has all the parts that it can have.
    #[error(
        "{device}: its table has {MOST} parts in which guests run or wait, as many as it can; expected fewer: load or give up one of \
         those that wait"
    )]
    Full {
        /// The device.
        device: String,
    },
    /// The guest's part is nobody's, or another's.
    #[error(
        "{device}: no part {} of guest {} is in its table: that RAM was given to another since, or is of a cold boot",
        Extent::Part(part.extent.clone()), part.guest
    )]
    NotThere {
        /// The device.
        device: String,
        /// What is not there.
        part: Part,
    },
    /// The guest had all of the device.
    #[error("the state is of a guest that had all of this device; since then others have parts of it")]
    Divided,
    /// Another process does not let go of the table.
    #[error("{device}: another process has its table of parts for more than {PATIENCE:?}; try again")]
    Busy {
        /// The device.
        device: String,
    },
    /// The last unit cannot be reached.
    #[error("{device}: {doing} its table of parts: {source}")]
    Io {
        /// The device.
        device: String,
        /// What was being done.
        doing: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
}

/// Makes sure that no saved guest is lost by a boot in this RAM, which is locked, or gives up who waits there. The stamp is for
/// [`RamBlock::clear_stamp`] to clear.
pub fn make_room(ram: &RamBlock, waiting: Waiting) -> Result<(), StampError> {
    let Some(stamp) = ram.stamp_location() else { return Ok(()) };
    let Some(device) = Device::of(ram) else {
        return if waiting == Waiting::Discarded { Ok(()) } else { refuse_lost(&stamp) };
    };
    let device = device.lock()?;
    let table = match (device.table(), waiting) {
        (Err(PartsError::Unreadable { .. }), Waiting::Discarded) => None,
        // Whoever waits does not in RAM that was this guest's.
        (Err(PartsError::Unreadable { .. }), Waiting::Elsewhere) => return Ok(()),
        (table, _) => table?,
    };
    match (&table, waiting) {
        (_, Waiting::Discarded) => {}
        (None, _) => refuse_lost(&device.0.last)?,
        (Some(table), _) => device.0.refuse_waiting(table)?,
    }
    // The stamp of one that has all is where the table is: clearing it takes out everybody.
    let Extent::Part(wanted) = device.0.extent else { return Ok(()) };
    let mut table = table.unwrap_or_default();
    table.remove(wanted);
    Ok(device.write(&mut table)?)
}

/// Puts a guest that is about to be saved in the table, if it has a part of a device. It runs, and its RAM is locked.
pub fn enter(ram: &RamBlock, guest: Uuid) -> Result<(), PartsError> {
    let Some((device, part)) = Device::with_part(ram, guest) else { return Ok(()) };
    let device = device.lock()?;
    let mut table = device.table_with_room(&part)?;
    table.insert(part);
    device.write(&mut table)
}

/// Whether it could be put there.
pub fn check(ram: &RamBlock, guest: Uuid) -> Result<(), PartsError> {
    let Some((device, part)) = Device::with_part(ram, guest) else { return Ok(()) };
    device.lock()?.table_with_room(&part).map(drop)
}

/// The stamp of a saved guest's RAM, whose it must be by the device's table if it is in a part of one. None for RAM that has no stamp.
pub fn stamp_of(ram: &RamBlock, guest: Uuid) -> Result<Option<Stamp>, StampError> {
    let Some(StampLocation { file, offset, granularity }) = ram.stamp_location() else { return Ok(None) };
    if let Some((device, part)) = Device::with_part(ram, guest) {
        let device = device.lock()?;
        if !device.table()?.is_some_and(|table| table.parts().contains(&part)) {
            return Err(PartsError::NotThere { device: device.0.name.clone(), part }.into());
        }
    }
    Stamp::open(&file, offset, granularity).map(Some)
}

/// A DAX device with a guest's RAM in it.
#[derive(Debug)]
struct Device<'a> {
    name: String,
    last: StampLocation,
    extent: &'a Extent,
}

impl<'a> Device<'a> {
    fn of(ram: &'a RamBlock) -> Option<Self> {
        let name = ram.path()?.display().to_string();
        Some(Self { name, last: ram.last_unit()?, extent: ram.extent() })
    }

    /// With a guest's part of it; none where the guest has all of it.
    fn with_part(ram: &'a RamBlock, guest: Uuid) -> Option<(Self, Part)> {
        let device = Self::of(ram)?;
        match device.extent {
            Extent::All => None,
            Extent::Part(extent) => Some((device, Part { extent: extent.clone(), guest })),
        }
    }

    fn io(&self, doing: &'static str) -> impl FnOnce(io::Error) -> PartsError {
        let device = self.name.clone();
        move |source| PartsError::Io { device, doing, source }
    }

    /// Locks the table, too. Who has all of the device has it.
    fn lock(self) -> Result<Locked<'a>, PartsError> {
        let deadline = Instant::now() + PATIENCE;
        while !lock::acquire(&self.last.file, &self.table_extent()).map_err(self.io("locking"))? {
            if Instant::now() > deadline {
                return Err(PartsError::Busy { device: self.name });
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(Locked(self))
    }

    fn table_extent(&self) -> Extent {
        Extent::Part(self.last.offset..self.last.offset + self.last.granularity)
    }

    fn wanted(&self) -> Range<u64> {
        match self.extent {
            Extent::All => 0..self.last.offset,
            Extent::Part(extent) => extent.clone(),
        }
    }

    /// Refuses RAM that some of a waiting guest's is in.
    fn refuse_waiting(&self, table: &Table) -> Result<(), StampError> {
        for part in table.overlapping(&self.wanted()) {
            match refuse_lost(&self.stamp_of(part)) {
                Err(StampError::Waiting) => {
                    let free = self.free(table);
                    return Err(
                        PartsError::Waits { device: self.name.clone(), part: part.clone(), free }.into()
                    );
                }
                found => found?,
            }
        }
        Ok(())
    }

    fn stamp_of(&self, part: &Part) -> StampLocation {
        StampLocation { offset: part.extent.end - self.last.granularity, ..self.last.clone() }
    }

    /// Whether a part's guest runs, is being saved, or waits. In this order: who lets go of the lock waits by then.
    fn is_taken(&self, part: &Part) -> bool {
        let held = lock::held(&self.last.file, &Extent::Part(part.extent.clone()));
        !matches!(held, Ok(None)) || refuse_lost(&self.stamp_of(part)).is_err()
    }

    /// Where nobody runs and nobody waits.
    fn free(&self, table: &Table) -> String {
        let waits = |part: &&Part| refuse_lost(&self.stamp_of(part)).is_err();
        let (mut from, mut gaps, mut free) = (0, Vec::new(), Vec::new());
        for part in table.parts().iter().filter(waits) {
            gaps.push(from..part.extent.start);
            from = part.extent.end;
        }
        gaps.push(from..self.last.offset);
        gaps.reverse();
        while let Some(gap) = gaps.pop() {
            match lock::held(&self.last.file, &Extent::Part(gap.clone())) {
                _ if gap.is_empty() => {}
                Ok(Some(Extent::Part(held))) => {
                    gaps.extend([held.end.min(gap.end)..gap.end, gap.start..held.start.max(gap.start)]);
                }
                Ok(None) => free.push(Extent::Part(gap).to_string()),
                Ok(Some(Extent::All)) | Err(_) => {}
            }
        }
        if free.is_empty() { "another device".into() } else { free.join(", ") }
    }
}

/// A device whose table nobody else writes.
#[derive(Debug)]
struct Locked<'a>(Device<'a>);

impl Locked<'_> {
    fn table(&self) -> Result<Option<Table>, PartsError> {
        Table::read(&self.0.last).map_err(|why| match why {
            Unreadable::Io(source) => self.0.io("reading")(source),
            Unreadable::Is(found) => PartsError::Unreadable { device: self.0.name.clone(), found },
        })
    }

    /// The table without what is in a part's place, and with room for that.
    fn table_with_room(&self, part: &Part) -> Result<Table, PartsError> {
        let mut table = self.table()?.unwrap_or_default();
        table.remove(&part.extent);
        if table.is_full() {
            table.retain(|part| self.0.is_taken(part));
        }
        if table.is_full() {
            return Err(PartsError::Full { device: self.0.name.clone() });
        }
        Ok(table)
    }

    fn write(&self, table: &mut Table) -> Result<(), PartsError> {
        table.write(&self.0.last).map_err(self.0.io("writing"))
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if *self.0.extent == Extent::All {
            return;
        }
        if let Err(error) = lock::release(&self.0.last.file, &self.0.table_extent()) {
            tracing::warn!("{}: unlocking its table of parts: {error}", self.0.name);
        }
    }
}

#[cfg(test)]
mod tests;
