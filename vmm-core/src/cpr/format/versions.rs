//! What two builds must agree on before one writes for the other.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::FormatError;
use super::section::{Section, SectionKind};

/// The versions of one kind of section that a build reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SectionVersions {
    /// The oldest version read.
    pub oldest: u16,
    /// The newest version read and written.
    pub newest: u16,
    /// The oldest version written.
    pub oldest_written: u16,
}

/// What a build reads and writes, for the hello message. Kinds are numbers: a peer may know ones that we do not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions(BTreeMap<u32, SectionVersions>);

impl Versions {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what this build does with a section.
    #[must_use]
    pub fn with<S: Section>(mut self) -> Self {
        let versions =
            SectionVersions { oldest: S::OLDEST, newest: S::VERSION, oldest_written: S::OLDEST_WRITTEN };
        self.0.insert(S::KIND as u32, versions);
        self
    }

    /// Only these kinds: what a guest really has.
    #[must_use]
    pub fn only(mut self, kinds: &[SectionKind]) -> Self {
        self.0.retain(|number, _| kinds.iter().any(|kind| *kind as u32 == *number));
        self
    }

    /// What is said of a kind, by its number on the wire.
    pub fn get(&self, kind: u32) -> Option<SectionVersions> {
        self.0.get(&kind).copied()
    }

    /// Checks that `reader` reads some version of every section that `self` writes, older or newer.
    pub fn check_writes_for(&self, reader: &Self) -> Result<(), FormatError> {
        let known = |number: &u32| SectionKind::from_number(*number);
        for (kind, ours) in self.0.iter().filter_map(|(number, ours)| Some((known(number)?, ours))) {
            reader.version_for(kind, *ours)?;
        }
        Ok(())
    }

    /// The version of a kind to write for `self`, out of those that the writer can write.
    pub(super) fn version_for(&self, kind: SectionKind, ours: SectionVersions) -> Result<u16, FormatError> {
        let theirs = self.get(kind as u32).ok_or(FormatError::PeerUnknown { kind })?;
        let version = ours.newest.min(theirs.newest);
        if version >= theirs.oldest && version >= ours.oldest_written {
            return Ok(version);
        }
        Err(FormatError::PeerVersion {
            kind,
            oldest: ours.oldest_written,
            newest: ours.newest,
            their_oldest: theirs.oldest,
            their_newest: theirs.newest,
        })
    }
}
