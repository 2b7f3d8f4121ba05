//! Named descriptors: what stays open over a handover.
//!
//! 1. A descriptor is `(name, id)`: registered by the part that owns it, unique, stable across versions.
//! 2. A name that is missing, doubled, or that nobody claims is an error that names it.
//! 3. Who takes a descriptor out checks that it is what it claims to be before using it.

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

/// The most descriptors a guest may have. Bounds what a peer can make us allocate.
pub const MAX_FDS: usize = 16 * 1024;

/// Why a set of named descriptors was refused.
#[derive(Debug, thiserror::Error)]
pub enum FdError {
    /// Nobody sent it.
    #[error("descriptor {0} is missing")]
    Missing(FdName),
    /// It was registered or sent twice.
    #[error("descriptor {0} is there twice")]
    Duplicate(FdName),
    /// It was sent, and nothing in this build wants it.
    #[error("descriptor {0} is unknown: nothing in this guest claims it")]
    Unclaimed(FdName),
    /// It is something else than its name says.
    #[error("descriptor {name} is {found}; expected {expected}")]
    Wrong {
        /// Which descriptor.
        name: FdName,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// There are more than [`MAX_FDS`].
    #[error("{0} descriptors; at most {MAX_FDS} can be handed over")]
    TooMany(usize),
    /// A system call failed.
    #[error("descriptor {name}: {doing}: {source}")]
    Io {
        /// Which descriptor.
        name: FdName,
        /// What was being done.
        doing: &'static str,
        /// What the kernel answered.
        source: std::io::Error,
    },
}

/// The name of a descriptor: what it is, and which of several.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FdName {
    /// What it is (`pc.ram`, `serial0.client`).
    pub name: String,
    /// Which of several; 0 where there is one.
    pub id: u32,
}

impl FdName {
    /// The `id`th descriptor called `name`.
    pub fn new(name: impl Into<String>, id: u32) -> Self {
        Self { name: name.into(), id }
    }
}

impl std::fmt::Display for FdName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "'{}' #{}", self.name, self.id)
    }
}

/// A set of named descriptors.
#[derive(Debug, Default)]
pub struct FdTable {
    fds: BTreeMap<FdName, OwnedFd>,
}

impl FdTable {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a descriptor.
    pub fn insert(&mut self, name: FdName, fd: OwnedFd) -> Result<(), FdError> {
        if self.fds.len() >= MAX_FDS {
            return Err(FdError::TooMany(self.fds.len() + 1));
        }
        if self.fds.contains_key(&name) {
            return Err(FdError::Duplicate(name));
        }
        self.fds.insert(name, fd);
        Ok(())
    }

    /// Adds a duplicate (close-on-exec) of a descriptor.
    pub fn insert_dup(&mut self, name: FdName, fd: BorrowedFd<'_>) -> Result<(), FdError> {
        let fd = fd.try_clone_to_owned().map_err(|source| FdError::Io {
            name: name.clone(),
            doing: "duplicating it",
            source,
        })?;
        self.insert(name, fd)
    }

    /// Takes a descriptor that must be there.
    pub fn take(&mut self, name: &FdName) -> Result<OwnedFd, FdError> {
        self.fds.remove(name).ok_or_else(|| FdError::Missing(name.clone()))
    }

    /// Takes a descriptor that may be there.
    pub fn take_optional(&mut self, name: &FdName) -> Option<OwnedFd> {
        self.fds.remove(name)
    }

    /// Closes those whose names are not to be kept.
    pub fn retain(&mut self, keep: impl Fn(&FdName) -> bool) {
        self.fds.retain(|name, _| keep(name));
    }

    /// The descriptors, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&FdName, &OwnedFd)> {
        self.fds.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.fds.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.fds.is_empty()
    }

    /// Ends the taking: a descriptor that nobody claimed is an error.
    pub fn finish(self) -> Result<(), FdError> {
        match self.fds.into_keys().next() {
            Some(name) => Err(FdError::Unclaimed(name)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn a_missing_a_doubled_and_an_unclaimed_descriptor_are_named() {
        let mut fds = FdTable::new();
        let name = FdName::new("pc.ram", 0);
        assert!(fds.take(&name).unwrap_err().to_string().contains("'pc.ram' #0 is missing"));
        fds.insert(name.clone(), null()).unwrap();
        assert!(fds.insert(name, null()).unwrap_err().to_string().contains("twice"));
        assert!(fds.finish().unwrap_err().to_string().contains("nothing in this guest claims it"));
    }
}
