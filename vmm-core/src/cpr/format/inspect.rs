//! What can be told of saved state, also where this build cannot load it.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use super::header::{RawHeader, arch_name, mode_of};
use super::section::SectionKind;
use super::table::{self, RawEntry};
use super::{StateReader, Versions};

/// What was found in saved state. For people by its `Display`, for machines by serde.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// Bytes that were looked at.
    pub size: usize,
    /// Why this build cannot load it; none where, as far as the format goes, it can.
    pub problem: Option<String>,
    /// What its header says; none where it is of another format version, not saved state, or too short.
    pub header: Option<HeaderView>,
    /// The section table, as far as it is there, the end section included.
    pub sections: Vec<SectionView>,
}

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HeaderView {
    /// Version of the layout.
    pub format_version: u32,
    /// Version of the build that wrote it.
    pub writer: String,
    /// The guest's architecture.
    pub arch: String,
    /// For which mode it was written.
    pub mode: String,
    /// The guest's name.
    pub guest_name: String,
    /// The guest's identity.
    pub guest_uuid: String,
    /// When it was written: nanoseconds since 1970, UTC.
    pub created: u64,
    /// Bytes of all payloads.
    pub payload_len: u64,
    /// Number of sections, the end section included.
    pub section_count: u32,
    /// `ok`, or why the header is not to be trusted.
    pub verdict: String,
}

/// What an entry of the section table says, and what its payload is like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SectionView {
    /// The kind's name, or its number where this build does not know it.
    pub kind: String,
    /// Which of several.
    pub instance: u32,
    /// Its version.
    pub version: u16,
    /// Where its payload is.
    pub offset: u64,
    /// Bytes of its payload.
    pub length: u64,
    /// CRC-32 that its payload must have.
    pub crc: u32,
    /// `ok`, or why it cannot be loaded.
    pub verdict: String,
}

/// The verdict of what is as it should be.
const OK: &str = "ok";

/// Tells what is in saved state for a build that reads `reads`. Never fails: what is wrong is part of the answer.
pub fn inspect(bytes: &[u8], reads: &Versions) -> Inspection {
    let raw = RawHeader::peek(bytes).ok();
    let header = raw.map(|raw| view_header(raw, bytes));
    let mut seen = BTreeSet::new();
    let sections: Vec<_> = raw
        .map(|raw| table::peek(raw, bytes))
        .unwrap_or_default()
        .iter()
        .map(|entry| view_section(entry, bytes, reads, seen.insert(entry.id())))
        .collect();
    let unreadable = || {
        let bad = sections.iter().find(|section| section.verdict != OK)?;
        Some(format!("section {} #{}: {}", bad.kind, bad.instance, bad.verdict))
    };
    let problem = StateReader::parse(bytes).err().map(|e| e.to_string()).or_else(unreadable);
    Inspection { size: bytes.len(), problem, header, sections }
}

/// A header's fields, checked or not.
fn view_header(raw: &RawHeader, bytes: &[u8]) -> HeaderView {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
    let mode = raw.mode.get();
    HeaderView {
        format_version: raw.version.get(),
        writer: text(&raw.writer),
        arch: arch_name(raw.arch.get()),
        mode: mode_of(mode).map_or_else(|| format!("mode {mode}"), |mode| mode.to_string()),
        guest_name: text(&raw.guest_name),
        guest_uuid: crate::config::Uuid(raw.guest_uuid).to_string(),
        created: raw.created.get(),
        payload_len: raw.payload_len.get(),
        section_count: raw.section_count.get(),
        verdict: RawHeader::parse(bytes).err().map_or_else(|| OK.into(), |e| e.to_string()),
    }
}

/// An entry's fields, and what can be said of its payload.
fn view_section(entry: &RawEntry, bytes: &[u8], reads: &Versions, first: bool) -> SectionView {
    SectionView {
        kind: entry.id().kind_name(),
        instance: entry.instance.get(),
        version: entry.version.get(),
        offset: entry.offset.get(),
        length: entry.length.get(),
        crc: entry.crc.get(),
        verdict: verdict(entry, bytes, reads, first),
    }
}

fn verdict(entry: &RawEntry, bytes: &[u8], reads: &Versions, first: bool) -> String {
    if !first {
        return "there twice".into();
    }
    let Some(payload) = entry.payload(bytes) else {
        return "truncated".into();
    };
    let crc = crc32fast::hash(payload);
    if crc != entry.crc.get() {
        return format!("damaged: checksum {crc:#010x}; expected {:#010x}", entry.crc.get());
    }
    let (kind, found) = (entry.kind.get(), entry.version.get());
    match reads.get(kind) {
        _ if kind == SectionKind::End as u32 => OK.into(),
        None => "unknown to this build".into(),
        Some(ours) if found < ours.oldest || found > ours.newest => {
            format!("version {found}; this build reads {} to {}", ours.oldest, ours.newest)
        }
        Some(_) => OK.into(),
    }
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(header) = &self.header {
            writeln!(f, "format version {}, written by {}", header.format_version, header.writer)?;
            writeln!(f, "guest          {} ({})", header.guest_name, header.guest_uuid)?;
            writeln!(f, "mode           {}, {}", header.mode, header.arch)?;
            let (seconds, rest) = (header.created / 1_000_000_000, header.created % 1_000_000_000);
            writeln!(f, "created        {seconds}.{rest:09} (seconds since 1970, UTC)")?;
            writeln!(f, "payloads       {} bytes in {} sections", header.payload_len, header.section_count)?;
            writeln!(f, "header         {}", header.verdict)?;
        }
        writeln!(f, "size           {} bytes", self.size)?;
        for section in &self.sections {
            let name = format!("{} #{}", section.kind, section.instance);
            let SectionView { version, offset, length, verdict, .. } = section;
            writeln!(f, "  {name:<18} version {version:<3} {length:>9} bytes at {offset:<9} {verdict}")?;
        }
        match &self.problem {
            Some(problem) => write!(f, "cannot be loaded: {problem}"),
            None => write!(f, "can be loaded"),
        }
    }
}
