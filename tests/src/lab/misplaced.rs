//! RAM that is another's, or is not what it was: nobody is booted in it or loaded from it, and it is whole afterwards.

use std::fs::{self, File};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use vmm_core::memory::StampLocation;

use super::commands::refused;
use super::dax::{self, UNIT_MIB};
use super::image::GUEST_KERNEL;
use super::paths::{self, GUESTS};
use super::scenario::{Guest, Scenario};

const UNIT: u64 = UNIT_MIB << 20;
/// What a stamp takes, and who has what.
const PAGE: usize = 4096;

/// Two guests wait in one DAX device: tries to boot others over them, and to load the second while its stamp is overwritten or the first
/// one's, and while it is not known who has what.
pub fn refuse_all(scenario: &Scenario) -> Result<()> {
    let Some(second) = &scenario.second else { return Ok(()) };
    fs::create_dir_all(paths::LOGS)?;
    let device = dax::device_of(GUESTS[1], second);
    let last = dax::size(&device)? - UNIT;
    let offset = mib(second)?;
    for (at, words) in [
        (Some(offset + UNIT_MIB), "was saved and waits in"),
        (Some(offset - 2 * UNIT_MIB), "was saved and waits in"),
        (None, "was saved and waits in"),
        (Some((last >> 20) - UNIT_MIB), "and the last one, at"),
    ] {
        boot(GUESTS[1], second, at, words)?;
    }
    let file = File::options().read(true).write(true).open(&device);
    let file = Arc::new(file.with_context(|| format!("opening {}", device.display()))?);
    let page = |offset| StampLocation { file: Arc::clone(&file), offset, granularity: UNIT };
    let (stamp, parts) = (page(last - UNIT), page(last));
    let mut first = vec![0; PAGE];
    page((offset << 20) - UNIT).read(&mut first)?;
    let attempts = [
        (&stamp, vec![0x5a; PAGE], "this RAM carries no stamp"),
        (&stamp, first, "this RAM is of guest"),
        (&parts, damaged(&parts)?, "its table of parts is damaged"),
        (&parts, vec![0; PAGE], "is in its table"),
    ];
    for (page, bytes, words) in attempts {
        let mut kept = vec![0; PAGE];
        page.read(&mut kept)?;
        page.write(&bytes)?;
        let from = format!("--from=file:{}", paths::kept_state_file(GUESTS[1]).display());
        let refused = refused(GUESTS[1], &["resume".to_owned(), from], words);
        page.write(&kept)?;
        refused?;
    }
    Ok(())
}

/// Tries to boot another in the RAM of a guest that runs.
pub fn refuse_over(name: &str, guest: &Guest) -> Result<()> {
    boot(name, guest, Some(mib(guest)?), "is in use by another guest")
}

/// Where a guest's RAM begins in the device that it shares.
fn mib(guest: &Guest) -> Result<u64> {
    guest.dax_offset_mib.context("the guest shares no DAX device")
}

/// Tries to boot a small guest at this offset of a guest's device, or in all of it.
fn boot(name: &str, guest: &Guest, mib: Option<u64>, words: &str) -> Result<()> {
    let (device, other) = (dax::device_of(name, guest), format!("not-{name}"));
    let offset = mib.map_or_else(String::new, |mib| format!(",offset={mib}M"));
    let memory = format!("--memory=size={UNIT_MIB}M,backing=dax,path={}{offset}", device.display());
    refused(&other, &["boot", "--name", &other, &memory, "--kernel", GUEST_KERNEL].map(str::to_owned), words)
}

/// The page with who has what, of which only its beginning is whole.
fn damaged(parts: &StampLocation) -> Result<Vec<u8>> {
    let mut page = vec![0; PAGE];
    parts.read(&mut page)?;
    ensure!(
        page.starts_with(b"cprstamp\x02"),
        "the device has no table: it begins with {:02x?}",
        &page[..12]
    );
    page[16..].fill(0x5a);
    Ok(page)
}
