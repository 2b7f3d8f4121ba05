//! `early`: saved guests, by name.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use super::boot::directory;

pub(super) const AFTER_HELP: &str = "\
Examples:
  cpr-load early --outlive-root
  cpr-load early web db --saved dir:/run/saved";

/// Guests that are to go on early, where they wait.
#[derive(Debug, PartialEq, Eq)]
pub struct Early {
    /// Their names.
    pub names: Vec<String>,
    /// The directory in which their state may be, too.
    pub saved: Option<PathBuf>,
    /// Whether what has them is to live on when the root file system is another, and this one is emptied.
    pub outlive_root: bool,
}

#[derive(Args)]
pub(super) struct Flags {
    /// The guests [default: those of /etc/cpr/NAME.toml]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// A directory in which NAME.state is looked for besides luo:NAME
    #[arg(long, value_name = "dir:PATH", value_parser = directory)]
    saved: Option<PathBuf>,
    /// Have the processes live on when the initial RAM disk is gone: in a mount namespace and a root of their own, where they see no
    /// file system but /proc, /sys, /dev and /run
    #[arg(long, conflicts_with = "saved")]
    outlive_root: bool,
}

impl Flags {
    pub(super) fn check(self) -> anyhow::Result<Early> {
        let names = if self.names.is_empty() { configured(Path::new("/etc/cpr"))? } else { self.names };
        Ok(Early { names, saved: self.saved, outlive_root: self.outlive_root })
    }
}

/// The guests that have a configuration in a directory, by name.
fn configured(directory: &Path) -> anyhow::Result<Vec<String>> {
    let doing = || format!("looking for guests in {}", directory.display());
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(doing)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let path = entry.with_context(doing)?.path();
        if path.extension().is_some_and(|extension| extension == "toml")
            && let Some(name) = path.file_stem().and_then(|name| name.to_str())
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_are_those_with_a_configuration_and_no_directory_has_none() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["web.toml", "db.toml", "web.toml.old", "notes"] {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        assert_eq!(configured(directory.path()).unwrap(), ["db", "web"]);
        assert!(configured(&directory.path().join("none")).unwrap().is_empty());
    }
}
