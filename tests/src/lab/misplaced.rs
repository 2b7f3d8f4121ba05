//! RAM that is not where it was when its guest was saved, or not what it was: nobody is loaded from it, and it is whole afterwards.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use vmm_core::memory::StampLocation;

use super::commands::refused;
use super::dax;
use super::paths::{self, GUESTS};

/// What a DAX device is mapped in units of, as [`dax::make`] makes it.
const UNIT: u64 = 2 << 20;

/// Two guests wait in DAX devices: tries to load them while each device has the other's name, and the second while its stamp is overwritten.
pub fn refuse_all() -> Result<()> {
    fs::create_dir_all(paths::LOGS)?;
    let swapped = Swapped::of(dax::device(0), dax::device(1))?;
    // The second's device is too small for the first one's RAM.
    resume(GUESTS[0], "of RAM in whole units, and one unit for the stamp")?;
    resume(GUESTS[1], "this RAM is of guest")?;
    drop(swapped);
    let device = dax::device(1);
    let file = File::options().read(true).write(true).open(&device);
    let file = file.with_context(|| format!("opening {}", device.display()))?;
    let offset = dax::size(&device)? - UNIT;
    let stamp = StampLocation { file: Arc::new(file), offset, granularity: UNIT };
    let mut kept = [0; 64];
    stamp.read(&mut kept)?;
    stamp.write(&[0x5a; 64])?;
    let refused = resume(GUESTS[1], "this RAM carries no stamp");
    stamp.write(&kept)?;
    refused
}

fn resume(name: &str, words: &str) -> Result<()> {
    let from = format!("--from=file:{}", paths::kept_state_file(name).display());
    refused(name, &["resume".to_owned(), from], words)
}

/// Two devices with each other's name, as a kernel may find them in another order.
struct Swapped(PathBuf, PathBuf);

impl Swapped {
    fn of(one: PathBuf, other: PathBuf) -> Result<Self> {
        swap(&one, &other)?;
        Ok(Self(one, other))
    }
}

impl Drop for Swapped {
    fn drop(&mut self) {
        if let Err(error) = swap(&self.0, &self.1) {
            println!("giving the devices their names back: {error:#}");
        }
    }
}

fn swap(one: &Path, other: &Path) -> Result<()> {
    let away = one.with_extension("away");
    for (from, to) in [(one, away.as_path()), (other, one), (away.as_path(), other)] {
        fs::rename(from, to).with_context(|| format!("naming {} {}", from.display(), to.display()))?;
    }
    Ok(())
}
