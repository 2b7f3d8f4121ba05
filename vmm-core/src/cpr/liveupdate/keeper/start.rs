//! Making a keeper.
//!
//! 1. It is started, and has said that it is ready, before there is anything to lose.
//! 2. It looks whether the kernel has a guest of its name, and says so: no other process than it ever has what the kernel gives out
//!    once. If there is none it is given the session and the guest's memory over its lifeline, and says that it has them.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use super::serve::{self, Numbers};
use super::{is_there, passing, socket_of};
use crate::cpr::exec::child;
use crate::cpr::liveupdate::LiveUpdateError;
use crate::cpr::liveupdate::session::{self, Session};
use crate::monitor::paths;
use crate::monitor::server::{BindError, failed, listen, lock_directory};

/// What the process is called.
const NAME: &str = "@cpr-load";
/// How long it may take to be ready, and to take what it is given.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take to get a guest's memory out of the kernel.
const RETRIEVED: Duration = Duration::from_mins(2);
/// How long it may take to say that it lives, for which a guest stands.
const AT_ONCE: Duration = Duration::from_secs(1);

/// A keeper in the making: it ends with this, unless it is [left](Self::leave) to itself.
#[derive(Debug)]
pub struct Keeper {
    guest: String,
    process: Option<Child>,
    /// It looks after itself when this is closed.
    lifeline: UnixStream,
}

/// Starts one for a guest that is to be saved, or that may have come over a kexec: whether it has is to be asked
/// ([`has_found`](Keeper::has_found)). Only the runtime directory's owner reaches its socket.
pub(in crate::cpr::liveupdate) fn start(guest: &str) -> Result<Keeper, LiveUpdateError> {
    session::name_of(guest)?;
    let path = socket_of(guest);
    let unheard = LiveUpdateError::io(format!("listening on {}", path.display()));
    let made = paths::make_runtime_dir().map_err(failed("making its directory"));
    let socket = match made.and_then(|_| listen(&path)) {
        Ok(socket) => socket,
        Err(BindError::InUse) => return Err(LiveUpdateError::Waiting { name: guest.into() }),
        Err(error) => return Err(unheard(io::Error::other(error))),
    };
    let start = || -> io::Result<Keeper> {
        let (ours, theirs) = UnixStream::pair()?;
        let lifeline = OwnedFd::from(theirs);
        let numbers = Numbers { socket: socket.as_raw_fd(), lifeline: lifeline.as_raw_fd() };
        let mut command = Command::new(Path::new("/proc/self/exe"));
        command.arg0(NAME).args(["keep", "--", guest, &numbers.word()]);
        // It must not keep a file system from being unmounted.
        command.current_dir("/");
        // What it says goes nowhere: a log that is gone, or full, must not end it.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // A terminal's signals are not for it.
        command.process_group(0);
        let process = Some(child::spawn(command, &[&socket, &lifeline])?);
        let keeper = Keeper { guest: guest.to_owned(), process, lifeline: ours };
        keeper.hear(PATIENCE)?;
        Ok(keeper)
    };
    start().map_err(LiveUpdateError::io(format!("starting a keeper for luo:{guest}")))
}

impl Keeper {
    /// Gives it the session and the guest's memory, it having found none, and hears that it has them.
    pub(in crate::cpr::liveupdate) fn give(
        &self,
        session: &Session,
        files: &[BorrowedFd<'_>],
    ) -> Result<(), LiveUpdateError> {
        let all: Vec<_> = [session.as_fd()].into_iter().chain(files.iter().copied()).collect();
        let given = passing::send(&self.lifeline, &all).and_then(|()| self.hear(PATIENCE));
        given.map(drop).map_err(LiveUpdateError::io(format!("giving luo:{} to its keeper", self.guest)))
    }

    /// Whether it has found the guest in the kernel.
    pub(in crate::cpr::liveupdate) fn has_found(&self) -> Result<bool, LiveUpdateError> {
        let doing = || format!("having a keeper take luo:{} out of the kernel", self.guest);
        match self.hear(RETRIEVED).map_err(LiveUpdateError::io(doing()))? {
            serve::FOUND => Ok(true),
            serve::NOTHING => Ok(false),
            _ => {
                let mut why = String::new();
                let read = (&self.lifeline).read_to_string(&mut why);
                let why = read.map_or_else(|error| error.to_string(), |_| why);
                Err(LiveUpdateError::io(doing())(io::Error::other(why)))
            }
        }
    }

    /// Waits for its next word.
    fn hear(&self, within: Duration) -> io::Result<u8> {
        let mut word = [0];
        self.lifeline.set_read_timeout(Some(within))?;
        match (&self.lifeline).read_exact(&mut word) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(io::Error::other(format!("it said nothing within {within:?}")))
            }
            read => read.map(|()| word[0]),
        }
    }

    /// Whether it is still there: it says so itself.
    pub fn lives(&self) -> bool {
        (&self.lifeline).write_all(b"?").is_ok() && self.hear(AT_ONCE).is_ok()
    }

    /// Leaves it to itself: it ends when the guest is claimed, or taken back.
    pub fn leave(mut self) {
        if let Some(mut process) = self.process.take() {
            // Who waits for another child must not find this one. Without the thread it is found.
            let reap = move || process.wait().map(drop);
            if let Err(error) = thread::Builder::new().name("keeper".into()).spawn(reap) {
                tracing::warn!("waiting for a keeper's end: {error}");
            }
        }
    }

    /// Takes its name away, unless that is another's by now.
    fn unlisten(&self) -> io::Result<()> {
        let path = socket_of(&self.guest);
        let _alone = lock_directory(&path)?;
        if self.lives() || !is_there(&self.guest) { fs::remove_file(path) } else { Ok(()) }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if self.process.is_none() {
            return;
        }
        match self.unlisten() {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("removing {}: {error}", socket_of(&self.guest).display());
            }
            _ => {}
        }
        let Some(process) = &mut self.process else { return };
        if let Err(error) = process.kill().and_then(|()| process.wait()) {
            tracing::warn!("ending the keeper {}: {error}", process.id());
        }
    }
}
