//! The bytes of saved state: one format for the file, the channel and the exec memfd. Knows nothing of KVM.
//!
//! 1. The header can be read without decoding the rest, and magic and format version without the rest of the header,
//!    so that state of any other version is named as such.
//! 2. Every byte is under exactly one checksum: the header's own, the section table's (kept in the header), or a
//!    section's (kept in the table). All are checked before anything is decoded: length, then checksum, then meaning.
//! 3. A section that is missing, unknown, doubled, of another version, or longer than what was read is an error that
//!    names it.
//! 4. Nothing is allocated by a length that was not checked against [`MAX_STATE`], [`MAX_SECTIONS`] or the input.
//! 5. The same sections under the same [`HeaderInfo`] give the same bytes.
//!
//! All numbers are little-endian and unaligned:
//!
//! ```text
//! header    magic, format version, header length, …, section count, CRC of the table, CRC of the header
//! table     one 32-byte entry a section: kind, instance, version, flags, CRC, offset, length; the last is End
//! payloads  in the table's order, with no gap, up to the end
//! ```
//!
//! `header` and `table` are the layout, `section` the contract of a wire struct, `versions` what two builds
//! must agree on, `writer` and `reader` the two directions, `kernel` the kernel's structures in a payload,
//! `inspect` what can be told of state that this build cannot load.

mod error;
mod header;
mod inspect;
mod kernel;
#[cfg(any(test, feature = "fuzzing"))]
mod mend;
mod reader;
mod section;
mod table;
#[cfg(test)]
mod tests;
mod versions;
mod writer;

pub use self::error::FormatError;
pub use self::header::{FORMAT_VERSION, HeaderInfo, MAX_NAME, MAX_WRITER};
pub use self::inspect::{HeaderView, Inspection, SectionView, inspect};
pub use self::kernel::KernelBytes;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::mend::mend;
pub use self::reader::StateReader;
pub use self::section::{Section, SectionId, SectionKind, decode_as, encode_as};
pub use self::table::Entry;
pub use self::versions::{SectionVersions, Versions};
pub use self::writer::StateWriter;

/// The most bytes that saved state may have. State is kilobytes a vCPU; RAM is never in it, but
/// may be before it in a file.
pub const MAX_STATE: usize = 64 << 20;

/// The most sections that saved state may have, the end section included.
pub const MAX_SECTIONS: usize = 4096;
