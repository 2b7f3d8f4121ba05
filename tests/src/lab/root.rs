//! A userland of a guest's or a host's own: a root file system on its first disk, whose init takes over.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::image;

/// A root file system, by the name that `scripts/lab-root` knows it by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Root {
    /// Debian 12, with systemd as init, for guests.
    Debian,
    /// Debian 13, for hosts.
    Trixie,
    /// Debian 14, for hosts.
    Forky,
}

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Debian => "debian",
            Self::Trixie => "trixie",
            Self::Forky => "forky",
        })
    }
}

impl Root {
    /// Copies the image, which is made first if it is not at hand: a guest writes to its root.
    pub fn copy(self, to: &Path) -> Result<()> {
        let image: PathBuf = image::script("lab-root", &self.to_string())?;
        let status = Command::new("cp").arg("--sparse=always").arg(&image).arg(to).status();
        let copied = status.context("running cp")?.success();
        ensure!(copied, "{} could not be copied to {}", image.display(), to.display());
        Ok(())
    }
}

/// How long a guest may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// To boot.
    pub boot: Duration,
    /// To power off.
    pub power_off: Duration,
}

impl Patience {
    /// What the guest program needs as init; with a userland of its own a guest starts and stops a hundred programs.
    pub fn with(root: Option<Root>) -> Self {
        let (boot, power_off) = if root.is_some() { (300, 300) } else { (180, 120) };
        Self { boot: Duration::from_secs(boot), power_off: Duration::from_secs(power_off) }
    }
}
