//! Writing saved state.

use std::collections::BTreeSet;

use zerocopy::IntoBytes;

use super::header::{HEADER_LEN, HeaderInfo, RawHeader, too_large};
use super::section::{Section, SectionId, SectionKind};
use super::table::{END_VERSION, ENTRY_LEN, RawEntry};
use super::versions::{SectionVersions, Versions};
use super::{FormatError, MAX_SECTIONS, MAX_STATE};
use crate::cpr::Mode;

/// Gathers sections, and gives the bytes.
#[derive(Debug)]
pub struct StateWriter {
    info: HeaderInfo,
    reader: Option<Versions>,
    seen: BTreeSet<SectionId>,
    sections: Vec<(SectionId, u16, usize)>,
    payloads: Vec<u8>,
}

impl StateWriter {
    /// Begins state that the present build will read.
    pub fn new(info: HeaderInfo) -> Self {
        Self { info, reader: None, seen: BTreeSet::new(), sections: Vec::new(), payloads: Vec::new() }
    }

    /// The mode that it is written for.
    pub fn mode(&self) -> Mode {
        self.info.mode
    }

    /// Writes each section in the newest version that a peer reads too.
    #[must_use]
    pub fn reading(mut self, peer: &Versions) -> Self {
        self.reader = Some(peer.clone());
        self
    }

    /// Adds a section.
    ///
    /// An error where it is there already, where the peer reads no version of it that can be written, or where
    /// [`MAX_SECTIONS`] or [`MAX_STATE`] would be passed.
    pub fn put<S: Section>(&mut self, instance: u32, section: &S) -> Result<(), FormatError> {
        let id = SectionId::new(S::KIND, instance);
        if S::KIND == SectionKind::End || !self.seen.insert(id) {
            return Err(FormatError::Duplicate(id));
        }
        let ours =
            SectionVersions { oldest: S::OLDEST, newest: S::VERSION, oldest_written: S::OLDEST_WRITTEN };
        let version = match &self.reader {
            Some(peer) => peer.version_for(S::KIND, ours)?,
            None => S::VERSION,
        };
        let payload = section.encode(version)?;
        self.payloads.extend_from_slice(&payload);
        self.sections.push((id, version, payload.len()));
        // One more for the end section.
        let (count, total) = (self.sections.len() + 1, self.len());
        if count > MAX_SECTIONS {
            return Err(too_large("number of sections", count as u64, MAX_SECTIONS));
        }
        if total > MAX_STATE {
            return Err(too_large("length", total as u64, MAX_STATE));
        }
        Ok(())
    }

    /// Adds a payload whatever it is, with checksums that are right.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn put_raw(&mut self, id: SectionId, version: u16, payload: &[u8]) {
        self.payloads.extend_from_slice(payload);
        self.sections.push((id, version, payload.len()));
    }

    /// Bytes that [`finish`](Self::finish) will give.
    fn len(&self) -> usize {
        HEADER_LEN + (self.sections.len() + 1) * ENTRY_LEN + self.payloads.len()
    }

    /// Closes it with the end section, and gives the bytes.
    ///
    /// An error where the guest's name or the writer's version does not fit the header.
    pub fn finish(self) -> Result<Vec<u8>, FormatError> {
        let total = self.len();
        let count = self.sections.len() + 1;
        let end = (SectionId::new(SectionKind::End, 0), END_VERSION, 0);
        let mut table = Vec::with_capacity(count);
        let mut at = 0;
        for (id, version, length) in self.sections.into_iter().chain([end]) {
            table.push(RawEntry {
                kind: id.kind.into(),
                instance: id.instance.into(),
                version: version.into(),
                flags: 0.into(),
                crc: crc32fast::hash(&self.payloads[at..at + length]).into(),
                offset: ((HEADER_LEN + count * ENTRY_LEN + at) as u64).into(),
                length: (length as u64).into(),
            });
            at += length;
        }
        let table = table.as_slice().as_bytes();
        let header = RawHeader::new(&self.info, self.payloads.len(), count, crc32fast::hash(table))?;
        let mut bytes = Vec::with_capacity(total);
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(table);
        bytes.extend_from_slice(&self.payloads);
        Ok(bytes)
    }
}
