//! Where a saved guest waits.

use std::fmt;
use std::path::{Path, PathBuf};

/// The file for the state of a guest, where several have theirs in one directory.
pub fn state_file(directory: &Path, guest: &str) -> PathBuf {
    directory.join(format!("{guest}.state"))
}

/// Where the state of a saved guest is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a file (`file:PATH`).
    File(PathBuf),
    /// In memory that the host's next kernel finds, by the guest's name (`luo:NAME`).
    LiveUpdate(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::LiveUpdate(name) => write!(f, "luo:{name}"),
        }
    }
}
