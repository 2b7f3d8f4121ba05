//! The kernel's Live Update Orchestrator (Documentation/userspace-api/liveupdate.rst): memory that the host's next kernel finds.
//!
//! 1. A guest's session has its state's memfd first and then its RAM's. It is preserved while the guest runs; after the stop only
//!    the state is written.
//! 2. A saved guest is with its keeper, a process that holds the session and hands the memfds out to whoever asks ([`keeper`]).
//!    A session whose last holder ends before the kexec is gone, and under the next kernel so is what was not retrieved.
//! 3. `cpr-load` asks the keeper, under this kernel, where a kexec failed, as under the next one, where it makes a keeper first that
//!    takes the guest out of the kernel ([`find`]). A load that fails leaves the guest with the keeper.
//! 4. Who may run the guest is told by the ownership word beside the state, as in a state file. Once it is claimed the keeper ends.
//!
//! `ioctls` is the system calls, `session` a session, `error` what can go wrong.

mod error;
mod ioctls;
pub mod keeper;
mod session;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::{AccessFlags, access};

pub use self::error::LiveUpdateError;
use self::keeper::{Keeper, Visit};
use self::session::{NODE, Session};
use crate::config::ByteSize;
use crate::cpr::blockers::Blocker;
use crate::memory::RamBlock;

/// Preserves a guest's memory under its name, and has a keeper for it.
pub fn preserve(name: &str, state: &File, ram: &RamBlock) -> Result<Keeper, LiveUpdateError> {
    let keeper = match look(name)? {
        Looked::Nothing(keeper) => keeper,
        Looked::Kept => return Err(LiveUpdateError::Waiting { name: name.into() }),
    };
    let session = Session::create(name)?;
    let files = [state.as_fd(), ram.file().as_fd()];
    session.preserve_all(&files)?;
    keeper.give(&session, &files)?;
    Ok(keeper)
}

/// Preserves what was retrieved once more, for the kernel after this one; nothing where that is not to be done, or cannot.
fn preserve_again(name: &str, files: &[OwnedFd]) -> Option<OwnedFd> {
    let session = Session::create(name).ok()?;
    let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    session.preserve_all(&files).ok()?;
    Some(session.into())
}

/// Finds a saved guest: with its keeper, or preserved by the kernel before this one, and with a keeper from then on.
pub fn find(name: &str) -> Result<Visit, LiveUpdateError> {
    match keeper::ask(name)? {
        Some(visit) => Ok(visit),
        None => match left_by_the_kernel_before(name)? {
            Some(visit) => Ok(visit),
            None => Err(LiveUpdateError::Nothing { name: name.into(), session: session::name_of(name)? }),
        },
    }
}

/// Whether a saved guest of this name waits.
pub fn is_waiting(name: &str) -> Result<bool, LiveUpdateError> {
    // Who may not open the node has saved nothing there.
    Ok(keeper::is_there(name)
        || access(NODE, AccessFlags::R_OK | AccessFlags::W_OK).is_ok()
            && match left_by_the_kernel_before(name) {
                // None of that name can wait there.
                Err(LiveUpdateError::Name { .. } | LiveUpdateError::None { .. }) => false,
                left => left?.is_some_and(|visit| waits(&visit)),
            })
}

/// Refuses to boot a guest where a saved one of its name waits: both would be on the same disks.
pub fn refuse_waiting(name: &str) -> Result<(), LiveUpdateError> {
    if is_waiting(name)? { Err(LiveUpdateError::Waiting { name: name.into() }) } else { Ok(()) }
}

/// What has become of looking for a saved guest.
enum Looked {
    /// It is with a keeper.
    Kept,
    /// There is none. This is who has looked.
    Nothing(Keeper),
}

/// Has a guest that nobody has asked for yet taken out of the session that the kernel before this one has left, if there is one; it has
/// a keeper from then on.
fn look(name: &str) -> Result<Looked, LiveUpdateError> {
    let keeper = match keeper::start(name) {
        // Somebody has come first.
        Err(LiveUpdateError::Waiting { .. }) => return Ok(Looked::Kept),
        keeper => keeper?,
    };
    let found = keeper.has_found();
    if let Ok(false) = found {
        return Ok(Looked::Nothing(keeper));
    }
    // What it has is nobody's to end.
    keeper.leave();
    found.map(|_| Looked::Kept)
}

/// A guest that the kernel before this one has left, if there is one.
fn left_by_the_kernel_before(name: &str) -> Result<Option<Visit>, LiveUpdateError> {
    match look(name)? {
        Looked::Nothing(_) => Ok(None),
        Looked::Kept => {
            keeper::ask(name)?.ok_or_else(|| LiveUpdateError::Gone { name: name.into() }).map(Some)
        }
    }
}

/// The session that the kernel before this one has left of a guest, if there is one, and the files in it. Who closes the session before
/// it has all files loses the others.
fn retrieve(name: &str) -> Result<Option<(OwnedFd, Vec<OwnedFd>)>, LiveUpdateError> {
    let Some(session) = Session::retrieve(name)? else { return Ok(None) };
    let files = session.files()?;
    Ok(Some((session.into(), files)))
}

/// Whether it is a guest that waits to be loaded, and not what a kexec has cut off, or one that was loaded.
fn waits(visit: &Visit) -> bool {
    !keeper::is_over(&visit.state, true)
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
