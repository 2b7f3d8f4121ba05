//! Making a keeper.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::fcntl::{Flock, FlockArg};

use super::serve::Numbers;
use super::{is_there, socket_of};
use crate::cpr::exec::child;
use crate::cpr::liveupdate::LiveUpdateError;
use crate::cpr::liveupdate::session::Session;
use crate::monitor::paths;

/// What the process is called.
const NAME: &str = "@cpr-load";

/// A socket that a keeper is to have. Its name goes with it, unless it is [left](Keeper::leave) to a keeper.
#[derive(Debug)]
pub(in crate::cpr::liveupdate) struct Listening {
    socket: OwnedFd,
    path: Option<PathBuf>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some(path) = &self.path
            && let Err(error) = fs::remove_file(path)
        {
            tracing::warn!("removing {}: {error}", path.display());
        }
    }
}

/// A keeper in the making: it ends with this, unless it is [left](Self::leave) to itself.
#[derive(Debug)]
pub struct Keeper {
    process: Option<Child>,
    listening: Listening,
    /// It looks after itself when this is closed.
    _lifeline: UnixStream,
}

/// A socket for the keeper of a guest that has none.
pub(in crate::cpr::liveupdate) fn listen(guest: &str) -> Result<Listening, LiveUpdateError> {
    let path = socket_of(guest);
    let bind = || -> io::Result<Option<UnixListener>> {
        // Of two that find nobody listening, one removes what was left behind, and the other finds the first.
        let directory = File::open(paths::make_runtime_dir()?)?;
        let _alone = Flock::lock(directory, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
        if is_there(guest) {
            return Ok(None);
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => UnixListener::bind(&path).map(Some),
        }
    };
    match bind().map_err(LiveUpdateError::io(format!("listening on {}", path.display())))? {
        Some(socket) => Ok(Listening { socket: socket.into(), path: Some(path) }),
        None => Err(LiveUpdateError::Waiting { name: guest.into() }),
    }
}

/// Starts one for a session and its files. Only the runtime directory's owner reaches its socket.
pub(in crate::cpr::liveupdate) fn start(
    guest: &str,
    listening: Listening,
    session: Session,
    files: &[&File],
) -> Result<Keeper, LiveUpdateError> {
    let start = || -> io::Result<Keeper> {
        let (ours, lifeline) = UnixStream::pair()?;
        let [session, lifeline] = [session.into(), OwnedFd::from(lifeline)];
        let files = files.iter().map(|file| file.try_clone().map(OwnedFd::from));
        let files = files.collect::<io::Result<Vec<_>>>()?;
        let numbers = Numbers {
            socket: listening.socket.as_raw_fd(),
            session: session.as_raw_fd(),
            lifeline: lifeline.as_raw_fd(),
            files: files.iter().map(AsRawFd::as_raw_fd).collect(),
        };
        let mut command = Command::new(Path::new("/proc/self/exe"));
        command.arg0(NAME).args(["keep", &numbers.word()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        // A terminal's signals are not for it.
        command.process_group(0);
        let inherited: Vec<_> = [&listening.socket, &session, &lifeline].into_iter().chain(&files).collect();
        let process = Some(child::spawn(command, &inherited)?);
        Ok(Keeper { process, listening, _lifeline: ours })
    };
    start().map_err(LiveUpdateError::io(format!("starting a keeper for luo:{guest}")))
}

impl Keeper {
    /// Leaves it to itself: it ends when the guest is claimed, or taken back.
    pub fn leave(mut self) {
        (self.process, self.listening.path) = (None, None);
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
