//! Reading saved state.

use super::header::{HeaderInfo, RawHeader, too_large};
use super::section::{Section, SectionId, SectionKind};
use super::table::{self, Entry};
use super::{FormatError, MAX_STATE};

/// Saved state whose lengths and checksums were found right, and from which the machine's parts take their sections.
#[derive(Debug)]
pub struct StateReader {
    header: HeaderInfo,
    table: Vec<Entry>,
    taken: Vec<bool>,
    bytes: Vec<u8>,
}

impl StateReader {
    /// Checks header, table and every payload's checksum. Decodes nothing.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let (raw, header) = RawHeader::parse(bytes)?;
        if bytes.len() > MAX_STATE {
            return Err(too_large("length", bytes.len() as u64, MAX_STATE));
        }
        let table = table::parse(raw, bytes)?;
        Ok(Self { header, taken: vec![false; table.len()], table, bytes: bytes.to_vec() })
    }

    /// What the header says.
    pub fn header(&self) -> &HeaderInfo {
        &self.header
    }

    /// The sections, in the order they were written in, without the end section.
    pub fn table(&self) -> &[Entry] {
        &self.table
    }

    /// The instances of a kind that are there, in the order they were written in.
    pub fn instances(&self, kind: SectionKind) -> Vec<u32> {
        self.table.iter().filter(|e| e.id.kind == kind as u32).map(|e| e.id.instance).collect()
    }

    /// Takes a section that must be there.
    pub fn take<S: Section>(&mut self, instance: u32) -> Result<S, FormatError> {
        let missing = || FormatError::Missing(SectionId::new(S::KIND, instance));
        self.take_optional(instance)?.ok_or_else(missing)
    }

    /// Takes a section that may be there. A section can be taken once.
    pub fn take_optional<S: Section>(&mut self, instance: u32) -> Result<Option<S>, FormatError> {
        let id = SectionId::new(S::KIND, instance);
        let free = self.table.iter().zip(&self.taken).position(|(entry, taken)| entry.id == id && !taken);
        let Some(index) = free else { return Ok(None) };
        let section = self.decode(&self.table[index])?;
        self.taken[index] = true;
        Ok(Some(section))
    }

    /// Looks at a section that must be there, and leaves it to be taken.
    pub fn peek<S: Section>(&self, instance: u32) -> Result<S, FormatError> {
        let id = SectionId::new(S::KIND, instance);
        let entry = self.table.iter().find(|entry| entry.id == id);
        self.decode(entry.ok_or(FormatError::Missing(id))?)
    }

    fn decode<S: Section>(&self, entry: &Entry) -> Result<S, FormatError> {
        if entry.version < S::OLDEST || entry.version > S::VERSION {
            return Err(FormatError::SectionVersion {
                section: entry.id,
                found: entry.version,
                oldest: S::OLDEST,
                newest: S::VERSION,
            });
        }
        let payload = &self.bytes[entry.range.clone()];
        S::decode(entry.version, payload).map_err(|cause| FormatError::InSection {
            section: entry.id,
            version: entry.version,
            cause: Box::new(cause),
        })
    }

    /// Ends the taking: a section that nothing took is an error.
    pub fn finish(self) -> Result<(), FormatError> {
        match self.table.iter().zip(&self.taken).find(|(_, taken)| !**taken) {
            Some((entry, _)) => Err(FormatError::NotTaken(entry.id)),
            None => Ok(()),
        }
    }
}
