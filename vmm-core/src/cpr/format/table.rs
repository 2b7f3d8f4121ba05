//! The section table: what is where, of which version, and what its bytes must add up to.

use std::collections::BTreeSet;
use std::ops::Range;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::header::{HEADER_LEN, RawHeader};
use super::section::{SectionId, SectionKind};
use super::{FormatError, MAX_SECTIONS};

/// One entry of the table.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawEntry {
    pub kind: U32,
    pub instance: U32,
    pub version: U16,
    /// Must be 0.
    pub flags: U16,
    /// CRC-32 of the payload.
    pub crc: U32,
    /// Where the payload is, from the beginning of the header.
    pub offset: U64,
    pub length: U64,
}

/// Bytes of an entry.
pub(super) const ENTRY_LEN: usize = size_of::<RawEntry>();

/// Version of the end section.
pub(super) const END_VERSION: u16 = 1;

impl RawEntry {
    /// Which section it is of.
    pub fn id(&self) -> SectionId {
        SectionId { kind: self.kind.get(), instance: self.instance.get() }
    }

    /// The bytes it points at, as far as they are there.
    pub fn payload<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let start = usize::try_from(self.offset.get()).ok()?;
        let end = start.checked_add(usize::try_from(self.length.get()).ok()?)?;
        bytes.get(start..end)
    }
}

/// A section whose entry and payload were checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Which section.
    pub id: SectionId,
    /// Its version.
    pub version: u16,
    /// Its bytes, from the beginning of the header.
    pub range: Range<usize>,
}

/// The entries under a header, unchecked, as many as are there and bounded.
pub(super) fn peek<'a>(header: &RawHeader, bytes: &'a [u8]) -> &'a [RawEntry] {
    let rest = bytes.get(HEADER_LEN..).unwrap_or_default();
    let count = (header.section_count.get() as usize).min(rest.len() / ENTRY_LEN).min(MAX_SECTIONS);
    <[RawEntry]>::ref_from_bytes_with_elems(&rest[..count * ENTRY_LEN], count).unwrap_or_default()
}

/// Reads and checks the table and every payload's checksum under a checked header. The end section is left out.
pub(super) fn parse(header: &RawHeader, bytes: &[u8]) -> Result<Vec<Entry>, FormatError> {
    let count = header.section_count.get() as usize;
    let raw = peek(header, bytes);
    let table_end = HEADER_LEN + count * ENTRY_LEN;
    let found = bytes.len() as u64;
    if raw.len() < count {
        return Err(FormatError::Truncated {
            part: "section table".into(),
            found,
            expected: table_end as u64,
        });
    }
    let (crc, expected) = (crc32fast::hash(raw.as_bytes()), header.table_crc.get());
    if crc != expected {
        return Err(FormatError::Checksum { part: "section table".into(), found: crc, expected });
    }
    let end = raw.iter().position(|entry| entry.kind.get() == SectionKind::End as u32);
    if end.is_none_or(|at| at + 1 != count) {
        return Err(FormatError::End { found: end, count });
    }
    let total = table_end as u64 + header.payload_len.get();
    check_layout(raw, table_end as u64, total)?;
    if found > total {
        return Err(FormatError::TrailingBytes { found, expected: total });
    }
    raw[..count - 1].iter().map(|entry| check_payload(entry, bytes)).collect()
}

/// Checks that no section is unknown or doubled and that the payloads lie one after the other up to the end.
fn check_layout(raw: &[RawEntry], start: u64, total: u64) -> Result<(), FormatError> {
    let mut seen = BTreeSet::new();
    let mut offset = start;
    for entry in raw {
        let section = entry.id();
        let kind = SectionKind::from_number(section.kind).ok_or(FormatError::UnknownKind(section))?;
        if !seen.insert(section) {
            return Err(FormatError::Duplicate(section));
        }
        let must = |field, found: u64, expected: u64| {
            if found == expected {
                return Ok(());
            }
            Err(FormatError::Table { section, field, found, expected })
        };
        must("flags", entry.flags.get().into(), 0)?;
        must("offset", entry.offset.get(), offset)?;
        if kind == SectionKind::End {
            must("instance", section.instance.into(), 0)?;
            must("version", entry.version.get().into(), END_VERSION.into())?;
            must("length", entry.length.get(), 0)?;
            must("checksum", entry.crc.get().into(), crc32fast::hash(&[]).into())?;
            must("offset", entry.offset.get(), total)?;
        }
        offset =
            offset.checked_add(entry.length.get()).filter(|end| *end <= total).ok_or(FormatError::Table {
                section,
                field: "length",
                found: entry.length.get(),
                expected: total - offset,
            })?;
    }
    Ok(())
}

/// Checks that a payload is there and has its checksum.
fn check_payload(entry: &RawEntry, bytes: &[u8]) -> Result<Entry, FormatError> {
    let id = entry.id();
    let part = || format!("section {id}");
    let end = entry.offset.get() + entry.length.get();
    let payload = entry.payload(bytes).ok_or_else(|| FormatError::Truncated {
        part: part(),
        found: bytes.len() as u64,
        expected: end,
    })?;
    let (found, expected) = (crc32fast::hash(payload), entry.crc.get());
    if found != expected {
        return Err(FormatError::Checksum { part: part(), found, expected });
    }
    Ok(Entry { id, version: entry.version.get(), range: entry.offset.get() as usize..end as usize })
}
