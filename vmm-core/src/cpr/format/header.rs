//! The header: what can be told of saved state without decoding it.

use std::time::{SystemTime, UNIX_EPOCH};

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{FormatError, MAX_SECTIONS, MAX_STATE};
use crate::config::Uuid;
use crate::cpr::Mode;

/// The first bytes of all saved state.
pub(super) const MAGIC: [u8; 8] = *b"cprstate";

/// The version of the layout of header and table. Sections have versions of their own.
pub const FORMAT_VERSION: u32 = 1;

/// The most bytes of a guest's name.
pub const MAX_NAME: usize = 64;

/// The most bytes of the writer's version.
pub const MAX_WRITER: usize = 32;

/// x86-64, by its number in ELF (`EM_X86_64`).
const ARCH_X86_64: u32 = 62;

/// What every version of the format begins with.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Prefix {
    pub magic: [u8; 8],
    pub version: U32,
}

/// The header of format version 1.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawHeader {
    pub magic: [u8; 8],
    pub version: U32,
    /// Bytes of this header.
    pub header_len: U32,
    pub arch: U32,
    pub mode: U32,
    /// Version of the build that wrote it, padded with zeros.
    pub writer: [u8; MAX_WRITER],
    /// Padded with zeros.
    pub guest_name: [u8; MAX_NAME],
    pub guest_uuid: [u8; 16],
    /// Nanoseconds since 1970, UTC.
    pub created: U64,
    /// Bytes of all payloads.
    pub payload_len: U64,
    /// Entries of the section table, the end section's included.
    pub section_count: U32,
    /// CRC-32 of the section table.
    pub table_crc: U32,
    /// CRC-32 of this header up to here.
    pub header_crc: U32,
}

/// Bytes of the header.
pub(super) const HEADER_LEN: usize = size_of::<RawHeader>();

/// What the header says of the guest and of the writer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderInfo {
    /// For which mode it was written.
    pub mode: Mode,
    /// The guest's name, at most [`MAX_NAME`] bytes.
    pub guest_name: String,
    /// The guest's identity.
    pub guest_uuid: Uuid,
    /// Version of the build that wrote it, at most [`MAX_WRITER`] bytes.
    pub writer: String,
    /// When it was written: nanoseconds since 1970, UTC.
    pub created: u64,
}

impl HeaderInfo {
    /// A header written by this build, now.
    pub fn new(mode: Mode, guest_name: impl Into<String>, guest_uuid: Uuid) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            mode,
            guest_name: guest_name.into(),
            guest_uuid,
            writer: env!("CARGO_PKG_VERSION").into(),
            created: since.as_nanos() as u64,
        }
    }
}

/// The header's number for a mode.
fn mode_number(mode: Mode) -> u32 {
    match mode {
        Mode::CprTransfer => 1,
        Mode::CprExec => 2,
        Mode::CprReboot => 3,
    }
}

/// The architecture's name, or its number in ELF.
pub(super) fn arch_name(arch: u32) -> String {
    if arch == ARCH_X86_64 { "x86-64".into() } else { format!("ELF machine {arch}") }
}

/// The mode that a header names.
pub(super) fn mode_of(number: u32) -> Option<Mode> {
    Mode::ALL.into_iter().find(|mode| mode_number(*mode) == number)
}

impl RawHeader {
    /// The header over a table and payloads.
    pub fn new(
        info: &HeaderInfo,
        payload_len: usize,
        sections: usize,
        table_crc: u32,
    ) -> Result<Self, FormatError> {
        let mut header = Self::new_zeroed();
        header.magic = MAGIC;
        header.version = FORMAT_VERSION.into();
        header.header_len = (HEADER_LEN as u32).into();
        header.arch = ARCH_X86_64.into();
        header.mode = mode_number(info.mode).into();
        put_text("writer's version", &info.writer, &mut header.writer)?;
        put_text("guest name", &info.guest_name, &mut header.guest_name)?;
        header.guest_uuid = info.guest_uuid.0;
        header.created = info.created.into();
        header.payload_len = (payload_len as u64).into();
        header.section_count = (sections as u32).into();
        header.table_crc = table_crc.into();
        header.header_crc = header.crc().into();
        Ok(header)
    }

    /// Reads a header of this build's format version, unchecked but for that.
    pub fn peek(bytes: &[u8]) -> Result<&Self, FormatError> {
        let truncated = |expected: usize| FormatError::Truncated {
            part: "header".into(),
            found: bytes.len() as u64,
            expected: expected as u64,
        };
        let (prefix, _) = Prefix::ref_from_prefix(bytes).map_err(|_| truncated(HEADER_LEN))?;
        if prefix.magic != MAGIC {
            return Err(FormatError::NotState { found: prefix.magic.into(), expected: MAGIC.into() });
        }
        if prefix.version.get() != FORMAT_VERSION {
            return Err(FormatError::FormatVersion { found: prefix.version.get(), expected: FORMAT_VERSION });
        }
        Ok(Self::ref_from_prefix(bytes).map_err(|_| truncated(HEADER_LEN))?.0)
    }

    /// Reads and checks the header: checksum, then meaning.
    pub fn parse(bytes: &[u8]) -> Result<(&Self, HeaderInfo), FormatError> {
        let header = Self::peek(bytes)?;
        let (found, expected) = (header.crc(), header.header_crc.get());
        if found != expected {
            return Err(FormatError::Checksum { part: "header".into(), found, expected });
        }
        let wrong = |field, found: String, expected: String| FormatError::Header { field, found, expected };
        if header.header_len.get() as usize != HEADER_LEN {
            let found = header.header_len.to_string();
            return Err(wrong("header length", found, HEADER_LEN.to_string()));
        }
        if header.arch.get() != ARCH_X86_64 {
            return Err(wrong("architecture", arch_name(header.arch.get()), arch_name(ARCH_X86_64)));
        }
        let mode = mode_of(header.mode.get())
            .ok_or_else(|| wrong("mode", header.mode.to_string(), "1 to 3".into()))?;
        let count = header.section_count.get() as usize;
        if count > MAX_SECTIONS {
            return Err(too_large("number of sections", count as u64, MAX_SECTIONS));
        }
        if header.payload_len.get() > MAX_STATE as u64 {
            return Err(too_large("length of the payloads", header.payload_len.get(), MAX_STATE));
        }
        let info = HeaderInfo {
            mode,
            guest_name: text_of("guest name", &header.guest_name)?,
            guest_uuid: Uuid(header.guest_uuid),
            writer: text_of("writer's version", &header.writer)?,
            created: header.created.get(),
        };
        Ok((header, info))
    }

    /// CRC-32 of the header up to where its own is kept.
    pub fn crc(&self) -> u32 {
        crc32fast::hash(&self.as_bytes()[..HEADER_LEN - size_of::<U32>()])
    }
}

/// A value over its bound.
pub(super) fn too_large(part: &str, found: u64, max: usize) -> FormatError {
    FormatError::TooLarge { part: part.into(), found, max: max as u64 }
}

/// Writes text into a field padded with zeros.
fn put_text(field: &'static str, text: &str, to: &mut [u8]) -> Result<(), FormatError> {
    if text.len() > to.len() || text.contains('\0') {
        return Err(FormatError::Header {
            field,
            found: format!("{text:?}"),
            expected: format!("at most {} bytes without a zero", to.len()),
        });
    }
    to[..text.len()].copy_from_slice(text.as_bytes());
    Ok(())
}

/// Reads the text of a field padded with zeros.
fn text_of(field: &'static str, bytes: &[u8]) -> Result<String, FormatError> {
    let end = bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    let text = std::str::from_utf8(&bytes[..end]).ok().filter(|text| !text.contains('\0'));
    text.map(str::to_owned).ok_or_else(|| FormatError::Header {
        field,
        found: format!("{:?}", String::from_utf8_lossy(bytes)),
        expected: "UTF-8 padded with zeros".into(),
    })
}
