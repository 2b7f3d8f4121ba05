//! Why saved state was refused.

use super::section::{SectionId, SectionKind};

/// Why saved state could not be read or written. Each message names the part, and what was found against what was
/// expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The magic is not there.
    #[error("this is not saved state: it begins with {found:02x?}; expected {expected:02x?}")]
    NotState {
        /// The first bytes.
        found: Vec<u8>,
        /// The magic.
        expected: Vec<u8>,
    },
    /// It is of another format version.
    #[error("saved state is of format version {found}; this build reads version {expected}")]
    FormatVersion {
        /// The version it is of.
        found: u32,
        /// The version this build reads.
        expected: u32,
    },
    /// A part ends before it is whole.
    #[error("saved state is truncated in its {part}: {found} bytes; expected {expected}")]
    Truncated {
        /// `header`, `section table` or the section.
        part: String,
        /// Bytes that are there, from the beginning.
        found: u64,
        /// Bytes that are needed, from the beginning.
        expected: u64,
    },
    /// It goes on after its end section.
    #[error("saved state has {found} bytes; by its header it ends after {expected}")]
    TrailingBytes {
        /// Bytes that are there.
        found: u64,
        /// Bytes by the header.
        expected: u64,
    },
    /// A length or count is over its bound.
    #[error("saved state: {part} is {found}; at most {max} is accepted")]
    TooLarge {
        /// What is too large.
        part: String,
        /// The value found.
        found: u64,
        /// The bound.
        max: u64,
    },
    /// A part does not have its checksum.
    #[error("saved state is damaged in its {part}: checksum {found:#010x}; expected {expected:#010x}")]
    Checksum {
        /// `header`, `section table` or the section.
        part: String,
        /// CRC-32 of the bytes.
        found: u32,
        /// CRC-32 that was written down.
        expected: u32,
    },
    /// A field of the header holds what it cannot.
    #[error("saved state: {field} in the header is {found}; expected {expected}")]
    Header {
        /// Which field.
        field: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: String,
    },
    /// A field of the section table holds what it cannot.
    #[error("section table: {field} of section {section} is {found}; expected {expected}")]
    Table {
        /// Whose entry.
        section: SectionId,
        /// Which field.
        field: &'static str,
        /// Its value.
        found: u64,
        /// What it must be.
        expected: u64,
    },
    /// The table does not end with one end section.
    #[error(
        "section table: the end section must be the last and only the last; it is at {found:?} of {count}"
    )]
    End {
        /// Where the first one is, if there is one.
        found: Option<usize>,
        /// Sections in the table.
        count: usize,
    },
    /// A section is of a kind that this build does not know.
    #[error("section {0} is unknown to this build")]
    UnknownKind(SectionId),
    /// A section is there twice.
    #[error("section {0} is there twice")]
    Duplicate(SectionId),
    /// A section that is needed is not there.
    #[error("section {0} is missing")]
    Missing(SectionId),
    /// A section was there, and nothing took it.
    #[error("section {0} is not for this machine: nothing in it takes it")]
    NotTaken(SectionId),
    /// A section is of a version that this build does not read.
    #[error("section {section} is version {found}; this build reads {oldest} to {newest}")]
    SectionVersion {
        /// Which section.
        section: SectionId,
        /// Its version.
        found: u16,
        /// The oldest version read.
        oldest: u16,
        /// The newest version read.
        newest: u16,
    },
    /// A section cannot be written in the version that the peer reads.
    #[error("section {kind} cannot be written as version {version}: that would lose state")]
    CannotWrite {
        /// What kind.
        kind: SectionKind,
        /// The version asked for.
        version: u16,
    },
    /// The peer reads no version of a section that this build writes.
    #[error(
        "section {kind}: this build writes versions {oldest} to {newest}; the other reads {their_oldest} to {their_newest}"
    )]
    PeerVersion {
        /// What kind.
        kind: SectionKind,
        /// The oldest version this build writes.
        oldest: u16,
        /// The newest version this build writes.
        newest: u16,
        /// The oldest version the peer reads.
        their_oldest: u16,
        /// The newest version the peer reads.
        their_newest: u16,
    },
    /// The peer does not know a section that this build writes.
    #[error("section {kind}: this build writes it, the other does not know it")]
    PeerUnknown {
        /// What kind.
        kind: SectionKind,
    },
    /// A payload does not decode, or does not encode.
    #[error("section {kind}: {reason}")]
    Payload {
        /// What kind.
        kind: SectionKind,
        /// What is wrong with it.
        reason: String,
    },
    /// A kernel structure has another size than here.
    #[error("kernel structure {name} is {found} bytes in the saved state; this build's is {expected}")]
    KernelSize {
        /// The structure's name.
        name: &'static str,
        /// Bytes in the saved state.
        found: usize,
        /// Bytes in this build.
        expected: usize,
    },
    /// An error of one section of several.
    #[error("section {section}, version {version}: {cause}")]
    InSection {
        /// Which section.
        section: SectionId,
        /// Its version.
        version: u16,
        /// What is wrong with it.
        cause: Box<FormatError>,
    },
}
