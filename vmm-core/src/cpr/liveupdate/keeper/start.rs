//! Making a keeper.
//!
//! 1. It is started, and has said that it is ready, before there is anything to lose.
//! 2. It is given the session and the guest's memory over its lifeline, and says that it has them.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use super::serve::Numbers;
use super::{is_there, passing, socket_of};
use crate::cpr::exec::child;
use crate::cpr::liveupdate::LiveUpdateError;
use crate::cpr::liveupdate::session::Session;
use crate::monitor::paths;

/// What the process is called.
const NAME: &str = "@cpr-load";
/// How long it may take to be ready, and to take what it is given.
const PATIENCE: Duration = Duration::from_secs(10);

/// The name of a socket. It goes with this, unless it is the keeper's own.
#[derive(Debug)]
struct Named(Option<PathBuf>);

impl Drop for Named {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = fs::remove_file(path)
        {
            tracing::warn!("removing {}: {error}", path.display());
        }
    }
}

/// A keeper in the making: it ends with this, unless it is [left](Self::leave) to itself.
#[derive(Debug)]
pub struct Keeper {
    guest: String,
    process: Option<Child>,
    socket: Named,
    /// It looks after itself when this is closed.
    lifeline: UnixStream,
}

/// A socket for the keeper of a guest that has none.
fn listen(path: &Path, guest: &str) -> io::Result<Option<UnixListener>> {
    // Of two that find nobody listening, one removes what was left behind, and the other finds the first.
    let directory = File::open(paths::make_runtime_dir()?)?;
    let _alone = Flock::lock(directory, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    if is_there(guest) {
        return Ok(None);
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => UnixListener::bind(path).map(Some),
    }
}

/// Starts one for a guest that has none, or for one that has come over a kexec and is preserved `again`. It has nothing yet; only the runtime directory's owner reaches its socket.
pub(in crate::cpr::liveupdate) fn start(guest: &str, again: bool) -> Result<Keeper, LiveUpdateError> {
    let path = socket_of(guest);
    let listening =
        listen(&path, guest).map_err(LiveUpdateError::io(format!("listening on {}", path.display())))?;
    let Some(socket) = listening else { return Err(LiveUpdateError::Waiting { name: guest.into() }) };
    let named = Named(Some(path));
    let start = || -> io::Result<Keeper> {
        let (ours, theirs) = UnixStream::pair()?;
        let (socket, lifeline) = (OwnedFd::from(socket), OwnedFd::from(theirs));
        let numbers = Numbers { socket: socket.as_raw_fd(), lifeline: lifeline.as_raw_fd(), again };
        let mut command = Command::new(Path::new("/proc/self/exe"));
        command.arg0(NAME).args(["keep", guest, &numbers.word()]);
        // What it says goes nowhere: a log that is gone, or full, must not end it.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // A terminal's signals are not for it.
        command.process_group(0);
        let process = Some(child::spawn(command, &[&socket, &lifeline])?);
        let keeper = Keeper { guest: guest.to_owned(), process, socket: named, lifeline: ours };
        keeper.hear()?;
        Ok(keeper)
    };
    start().map_err(LiveUpdateError::io(format!("starting a keeper for luo:{guest}")))
}

impl Keeper {
    /// Gives it the session and the guest's memory, and hears that it has them.
    pub(in crate::cpr::liveupdate) fn give(
        &self,
        session: &Session,
        files: &[BorrowedFd<'_>],
    ) -> Result<(), LiveUpdateError> {
        let all: Vec<_> = [session.as_fd()].into_iter().chain(files.iter().copied()).collect();
        let given = passing::send(&self.lifeline, &all).and_then(|()| self.hear());
        given.map_err(LiveUpdateError::io(format!("giving luo:{} to its keeper", self.guest)))
    }

    /// Waits for its next word.
    fn hear(&self) -> io::Result<()> {
        self.lifeline.set_read_timeout(Some(PATIENCE))?;
        (&self.lifeline).read_exact(&mut [0])
    }

    /// Whether it is still there.
    pub fn lives(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| matches!(process.try_wait(), Ok(None)))
    }

    /// Leaves it to itself: it ends when the guest is claimed, or taken back.
    pub fn leave(mut self) {
        self.socket.0 = None;
        if let Some(mut process) = self.process.take() {
            // Who waits for another child must not find this one.
            thread::spawn(move || process.wait());
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let Some(process) = &mut self.process else { return };
        if let Err(error) = process.kill().and_then(|()| process.wait()) {
            tracing::warn!("ending the keeper {}: {error}", process.id());
        }
    }
}
