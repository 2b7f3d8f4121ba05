//! Who was saved in which part of a DAX device, as its last unit says.
//!
//! 1. The table begins as a stamp of another version does: builds that know no parts take it for a guest that waits.
//! 2. It is there twice. The older one is written over, so that of a write that was cut short the other is left.
//! 3. Nothing in it is used before its checksum; then parts must be in the device, whole units, and apart from each other.

use std::io;
use std::ops::Range;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::config::Uuid;
use crate::cpr::ownership::PAGE_SIZE;
use crate::cpr::reboot::stamp;
use crate::memory::StampLocation;

/// What a table has in the place of a stamp's version.
pub(in crate::cpr::reboot) const VERSION: u32 = 2;

/// The most parts that a device can have.
pub(super) const MOST: usize = 63;

/// A part of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Where it is, with the stamp in its last unit.
    pub extent: Range<u64>,
    /// Whose it is.
    pub guest: Uuid,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Entry {
    start: U64,
    length: U64,
    guest: [u8; 16],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Half {
    /// CRC-32 of what follows.
    crc: U32,
    count: U32,
    sequence: U64,
    entries: [Entry; MOST],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Page {
    magic: [u8; 8],
    version: U32,
    unused: [u8; 4],
    halves: [Half; 2],
    rest: [u8; 16],
}

const _: () = assert!(size_of::<Page>() == PAGE_SIZE as usize);

/// The table.
#[derive(Debug, Default)]
pub(super) struct Table {
    parts: Vec<Part>,
    /// Where it was, and which it is; none if it is new.
    found: Option<(usize, u64)>,
}

/// Why there is no telling.
#[derive(Debug)]
pub(super) enum Unreadable {
    Io(io::Error),
    /// What is there.
    Is(String),
}

impl Table {
    /// The table of a device, if it has one. What a cold boot leaves there, or a guest that has all of it, is none.
    pub(super) fn read(last: &StampLocation) -> Result<Option<Self>, Unreadable> {
        let page = page(last).map_err(Unreadable::Io)?;
        if page.magic != stamp::MAGIC || page.version == stamp::VERSION {
            return Ok(None);
        }
        if page.version != VERSION {
            return Err(Unreadable::Is(format!("of version {}", page.version)));
        }
        let whole = page.halves.iter().enumerate().filter(|(_, half)| half.crc == half.sum());
        let newest = whole.max_by_key(|(_, half)| half.sequence);
        let (at, half) = newest.ok_or_else(|| Unreadable::Is("damaged".into()))?;
        let parts = half.parts(last).ok_or_else(|| Unreadable::Is("of another device".into()))?;
        Ok(Some(Self { parts, found: Some((at, half.sequence.get())) }))
    }

    /// Has it outlive the host's kernel, and a loss of power where the device does.
    pub(super) fn write(&mut self, last: &StampLocation) -> io::Result<()> {
        let mut page = match self.found {
            Some(_) => page(last)?,
            None => Page::new_zeroed(),
        };
        let (at, sequence) = match self.found {
            None => (0, 1),
            Some((at, sequence)) => {
                let next = sequence.checked_add(1);
                (1 - at, next.ok_or_else(|| io::Error::other("it cannot be written once more"))?)
            }
        };
        page.halves[at] = Half::of(&self.parts, sequence);
        last.write(page.as_bytes())?;
        if self.found.is_none() {
            // What is there is no table before it is whole.
            (page.magic, page.version) = (stamp::MAGIC, VERSION.into());
            last.write(page.as_bytes())?;
        }
        self.found = Some((at, sequence));
        Ok(())
    }

    /// The parts, in rising order.
    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The parts that have anything of an extent.
    pub(super) fn overlapping(&self, extent: &Range<u64>) -> impl Iterator<Item = &Part> {
        self.parts.iter().filter(|part| overlap(&part.extent, extent))
    }

    /// Takes those out.
    pub(super) fn remove(&mut self, extent: &Range<u64>) {
        self.parts.retain(|part| !overlap(&part.extent, extent));
    }

    /// Takes out all but some.
    pub(super) fn retain(&mut self, keep: impl FnMut(&Part) -> bool) {
        self.parts.retain(keep);
    }

    /// Whether it has as many parts as it can.
    pub(super) fn is_full(&self) -> bool {
        self.parts.len() >= MOST
    }

    /// Puts a part in, in whose place there is none; it is not full.
    pub(super) fn insert(&mut self, part: Part) {
        let at = self.parts.partition_point(|other| other.extent.start < part.extent.start);
        self.parts.insert(at, part);
    }
}

impl Half {
    fn of(parts: &[Part], sequence: u64) -> Self {
        let mut half = Self::new_zeroed();
        for (entry, Part { extent, guest }) in half.entries.iter_mut().zip(parts) {
            let length = (extent.end - extent.start).into();
            *entry = Entry { start: extent.start.into(), length, guest: guest.0 };
        }
        half.count = (parts.len() as u32).into();
        half.sequence = sequence.into();
        half.crc = half.sum();
        half
    }

    fn sum(&self) -> U32 {
        crc32fast::hash(&self.as_bytes()[size_of::<U32>()..]).into()
    }

    /// The parts, if a device with this last unit can have them.
    fn parts(&self, last: &StampLocation) -> Option<Vec<Part>> {
        let mut end = 0;
        let entries = self.entries.get(..self.count.get() as usize)?;
        let part = |entry: &Entry| {
            let start = entry.start.get();
            let extent = start..start.checked_add(entry.length.get())?;
            let whole = (start | entry.length.get()).is_multiple_of(last.granularity) && !extent.is_empty();
            let apart = start >= end && extent.end <= last.offset;
            end = extent.end;
            (whole && apart).then_some(Part { extent, guest: Uuid(entry.guest) })
        };
        entries.iter().map(part).collect()
    }
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

fn page(last: &StampLocation) -> io::Result<Page> {
    let mut bytes = [0; PAGE_SIZE as usize];
    last.read(&mut bytes)?;
    Ok(zerocopy::transmute!(bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    const UNIT: u64 = 2 << 20;

    fn last() -> StampLocation {
        let file = tempfile::tempfile().unwrap();
        file.set_len(101 * UNIT).unwrap();
        StampLocation { file: Arc::new(file), offset: 100 * UNIT, granularity: UNIT }
    }

    fn part(start: u64, end: u64) -> Part {
        Part { extent: start * UNIT..end * UNIT, guest: Uuid([start as u8; 16]) }
    }

    fn written(last: &StampLocation, parts: &[Part]) -> Table {
        let mut table = Table::default();
        for part in parts {
            table.insert(part.clone());
        }
        table.write(last).unwrap();
        table
    }

    fn read(last: &StampLocation) -> Vec<Part> {
        Table::read(last).unwrap().unwrap().parts().to_vec()
    }

    #[test]
    fn what_was_written_is_read_in_rising_order() {
        let last = last();
        assert!(Table::read(&last).unwrap().is_none());
        let mut table = written(&last, &[part(50, 60), part(0, 2), part(60, 100)]);
        assert_eq!(read(&last), [part(0, 2), part(50, 60), part(60, 100)]);
        table.remove(&(UNIT..51 * UNIT));
        table.write(&last).unwrap();
        assert_eq!(read(&last), [part(60, 100)]);
        assert_eq!(table.overlapping(&(0..60 * UNIT)).count(), 0);
    }

    #[test]
    fn any_byte_that_is_wrong_leaves_the_table_before() {
        let last = last();
        let mut table = written(&last, &[part(0, 2)]);
        table.remove(&(0..UNIT));
        table.insert(part(4, 8));
        table.write(&last).unwrap();
        let newest = last.offset + 16 + size_of::<Half>() as u64;
        for at in newest..newest + size_of::<Half>() as u64 {
            let mut byte = [0];
            last.file.read_exact_at(&mut byte, at).unwrap();
            last.file.write_all_at(&[byte[0] ^ 4], at).unwrap();
            assert_eq!(read(&last), [part(0, 2)], "byte {at}");
            last.file.write_all_at(&byte, at).unwrap();
        }
        assert_eq!(read(&last), [part(4, 8)]);
    }

    #[test]
    fn a_table_of_which_nothing_is_whole_is_damaged_and_another_version_is_said() {
        let last = last();
        written(&last, &[part(0, 2)]);
        last.file.write_all_at(&[1], last.offset + 40).unwrap();
        assert!(matches!(Table::read(&last), Err(Unreadable::Is(what)) if what == "damaged"));
        last.file.write_all_at(&[3], last.offset + 8).unwrap();
        assert!(matches!(Table::read(&last), Err(Unreadable::Is(what)) if what == "of version 3"));
        // A stamp's, and what a cold boot leaves.
        for (at, byte) in [(8, 1), (0, 0xff)] {
            last.file.write_all_at(&[byte], last.offset + at).unwrap();
            assert!(Table::read(&last).unwrap().is_none());
        }
    }

    #[test]
    fn a_new_table_is_not_mixed_with_what_was_there() {
        let last = last();
        let mut old = written(&last, &[part(0, 2)]);
        for _ in 0..5 {
            old.write(&last).unwrap();
        }
        last.file.write_all_at(&[0xff; 16], last.offset).unwrap();
        written(&last, &[part(4, 8)]);
        assert_eq!(read(&last), [part(4, 8)]);
    }

    #[test]
    fn parts_that_the_device_cannot_have_are_refused() {
        let unaligned = Part { extent: 1..UNIT + 1, ..part(0, 1) };
        let past_the_end = part(99, 101);
        for parts in [vec![unaligned], vec![past_the_end], vec![part(0, 4), part(3, 5)], vec![part(3, 3)]] {
            let last = last();
            written(&last, &parts);
            assert!(matches!(Table::read(&last), Err(Unreadable::Is(_))), "{parts:?}");
        }
    }

    #[test]
    fn as_many_parts_as_there_can_be_are_written_and_read() {
        let (last, mut table) = (last(), Table::default());
        for at in 0..MOST as u64 {
            assert!(!table.is_full());
            table.insert(part(at, at + 1));
        }
        assert!(table.is_full());
        table.write(&last).unwrap();
        assert_eq!(read(&last).len(), MOST);
    }

    /// A number that a table may have for one of units, or any.
    fn units() -> impl Strategy<Value = u64> {
        prop_oneof![4 => (0..120u64).prop_map(|units| units * UNIT), 1 => any::<u64>()]
    }

    proptest! {
        /// Whatever a table has that somebody gave its checksum: what is read of it are parts that its device can have.
        #[test]
        fn what_is_read_can_be_in_the_device(
            entries in prop::collection::vec((units(), units(), any::<[u8; 16]>()), 0..4),
            count in prop_oneof![4 => 0..5u32, 1 => any::<u32>()],
            sequences in any::<[u64; 2]>(),
        ) {
            let last = last();
            let mut page = Page::new_zeroed();
            (page.magic, page.version) = (stamp::MAGIC, VERSION.into());
            for (half, sequence) in page.halves.iter_mut().zip(sequences) {
                for (entry, &(start, length, guest)) in half.entries.iter_mut().zip(&entries) {
                    *entry = Entry { start: start.into(), length: length.into(), guest };
                }
                (half.count, half.sequence) = (count.into(), sequence.into());
                half.crc = half.sum();
            }
            last.write(page.as_bytes()).unwrap();
            match Table::read(&last) {
                Ok(table) => {
                    let table = table.unwrap();
                    let mut end = 0;
                    for Part { extent, .. } in table.parts() {
                        prop_assert!(end <= extent.start && extent.start < extent.end && extent.end <= last.offset);
                        prop_assert!(extent.start % UNIT == 0 && extent.end % UNIT == 0);
                        end = extent.end;
                    }
                    prop_assert_eq!(table.parts().len(), count as usize);
                }
                Err(Unreadable::Is(what)) => prop_assert_eq!(what, "of another device"),
                Err(Unreadable::Io(error)) => prop_assert!(false, "{}", error),
            }
        }
    }
}
