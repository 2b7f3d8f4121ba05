//! What must not be loaded under the host's next kernel, each tried before what must.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::commands::{refused, until};
use super::image::GUEST_KERNEL;
use super::paths::RUNTIME;

/// What was loaded one kernel before, if that was not the first.
fn old(file: &Path) -> PathBuf {
    file.with_extension("old")
}

/// Keeps a file that has been loaded, for the next kernel to refuse.
pub fn keep(file: &Path) -> Result<()> {
    fs::rename(file, old(file)).with_context(|| format!("keeping {}", file.display()))
}

/// Tries to load a guest from all that is not its state; the guest must still be to be loaded afterwards. One with RAM in it is
/// known by more than its contents.
pub fn refuse_all(name: &str, file: &Path, with_ram: bool) -> Result<()> {
    let state = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    let was_loaded = if with_ram {
        refuse(name, &written(file, "copy", &state)?, "is a copy")?;
        "loaded already"
    } else {
        let (mut spoilt, middle) = (state.clone(), state.len() / 2);
        spoilt[middle] ^= 0x10;
        refuse(name, &written(file, "cut", &state[..middle])?, "truncated")?;
        refuse(name, &written(file, "spoilt", &spoilt)?, "checksum")?;
        "generation"
    };
    let old = old(file);
    if old.exists() { refuse(name, &old, was_loaded) } else { Ok(()) }
}

/// Tries to boot another of its name, to load a guest that is nowhere, and one that the kernel has kept with what cannot be had here, which leaves it there.
pub fn refuse_strange(name: &str) -> Result<()> {
    let resume = |from: &str, set: &[&str], word: &str| {
        let words = ["resume", "--from", from].into_iter().chain(set.iter().copied()).map(str::to_owned);
        refused(name, &words.collect::<Vec<_>>(), word)
    };
    let nobody = format!("luo:not-{name}");
    resume(&nobody, &[], &format!("no guest waits as {nobody}"))?;
    let boot = ["boot", "--name", name, "--memory=size=64M", "--kernel", GUEST_KERNEL].map(str::to_owned);
    let from = format!("luo:{name}");
    refused(name, &boot, &format!("waits as {from} already"))?;
    for _ in 0..2 {
        resume(&from, &["--set", "serial=file:/nowhere/serial"], "/nowhere/serial")?;
    }
    Ok(())
}

/// Tries to load a guest once more.
pub fn refuse_loaded(name: &str) -> Result<()> {
    until("the keeper to end", || {
        Ok((!Path::new(RUNTIME).join(format!("{name}.kept")).exists()).then_some(()))
    })?;
    refused(name, &["resume".to_owned(), format!("--from=luo:{name}")], "no keeper of it runs")
}

fn written(file: &Path, what: &str, bytes: &[u8]) -> Result<PathBuf> {
    let path = file.with_extension(what);
    fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(path)
}

fn refuse(name: &str, file: &Path, word: &str) -> Result<()> {
    refused(name, &["resume".to_owned(), format!("--from=file:{}", file.display())], word)
}
