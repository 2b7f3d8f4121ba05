//! The kernel's Live Update Orchestrator (Documentation/userspace-api/liveupdate.rst): memory that the host's next kernel finds.
//!
//! 1. A guest's session has its state's memfd first and then its RAM's. It is preserved while the guest runs; after the stop only
//!    the state is written.
//! 2. A saved guest is with its keeper, a process that holds the session and hands the memfds out to whoever asks ([`keeper`]).
//!    A session whose last holder ends before the kexec is gone, and under the next kernel so is what was not retrieved.
//! 3. `cpr-load` asks the keeper, under this kernel, where a kexec failed, as under the next one, where it makes the keeper
//!    first ([`find`]). A load that fails leaves the guest with the keeper.
//! 4. Who may run the guest is told by the ownership word beside the state, as in a state file. Once it is claimed the keeper ends.
//!
//! `ioctls` is the system calls, `session` a session, `error` what can go wrong.

mod error;
mod ioctls;
pub mod keeper;
mod session;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

pub use self::error::LiveUpdateError;
use self::keeper::{Keeper, Visit};
use self::session::{NODE, Session};
use crate::config::ByteSize;
use crate::cpr::blockers::Blocker;
use crate::memory::RamBlock;

/// Preserves a guest's memory under its name, and starts a keeper for it.
pub fn preserve(name: &str, state: &File, ram: &RamBlock) -> Result<Keeper, LiveUpdateError> {
    let socket = keeper::listen(name)?;
    let session = Session::create(name)?;
    session.preserve(0, state)?;
    session.preserve(1, ram.file())?;
    keeper::start(name, socket, session, &[state, ram.file()])
}

/// Finds a saved guest: with its keeper, or preserved by the kernel before this one, and with a keeper from then on.
pub fn find(name: &str) -> Result<Visit, LiveUpdateError> {
    if let Some(visit) = keeper::ask(name)? {
        return Ok(visit);
    }
    // What can fail does so before anything is retrieved: with a session that is closed its files are gone.
    let gone = || LiveUpdateError::Gone { name: name.into() };
    let socket = match keeper::listen(name) {
        // Somebody has come first.
        Err(LiveUpdateError::Waiting { .. }) => return keeper::ask(name)?.ok_or_else(gone),
        socket => socket?,
    };
    let session = Session::retrieve(name)?;
    let files = session.files()?;
    let all: Vec<_> = files.iter().collect();
    match session.try_clone().and_then(|session| keeper::start(name, socket, session, &all)) {
        Ok(keeper) => keeper.leave(),
        // Then this process is all that has the guest, and must not fail.
        Err(error) => {
            tracing::error!("{error}: should the guest not be loaded by this process, it is lost");
            let files = files.into_iter().map(OwnedFd::from).collect();
            return Visit::new(name, files, session.into());
        }
    }
    keeper::ask(name)?.ok_or_else(gone)
}

/// What stands in the way of preserving a guest's memory.
pub fn blocker(name: &str, ram: Option<&RamBlock>) -> Option<Blocker> {
    let why = if !Path::new(NODE).exists() {
        LiveUpdateError::None { source: std::io::Error::from_raw_os_error(libc::ENOENT) }.to_string()
    } else if let Err(error) = session::name_of(name) {
        error.to_string()
    } else if keeper::is_there(name) {
        LiveUpdateError::Waiting { name: name.into() }.to_string()
    } else {
        return ram.and_then(no_room);
    };
    Some(Blocker::new("live update", why))
}

/// Whether the host lacks the memory for what the guest has not touched yet: all of its RAM is allocated.
fn no_room(ram: &RamBlock) -> Option<Blocker> {
    let allocated = ram.file().metadata().ok()?.blocks() * 512;
    let (needed, available) = (ram.size().saturating_sub(allocated), available()?);
    (needed > available).then(|| {
        let why = format!(
            "a live update allocates all of a guest's RAM, {} more than it has touched, and the host has {} left: make room, give the \
             guest less RAM, or save it to a file",
            ByteSize(needed),
            ByteSize(available)
        );
        Blocker::new(ram.name(), why)
    })
}

/// Bytes of memory that the host has for whoever asks.
fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}
