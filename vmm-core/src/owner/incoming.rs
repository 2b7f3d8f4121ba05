//! Taking a guest in.

use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::{Origin, OwnerError, early};
use crate::cpr::exec::arrive::{self, Arrived};
use crate::cpr::exec::inherit;
use crate::cpr::exec::state::{Journey, Settings};
use crate::cpr::exec::stopover::Sockets;
use crate::cpr::fds::FdTable;
use crate::cpr::reboot;
use crate::cpr::report::Report;
use crate::cpr::transfer::channel::{self, Channel};
use crate::cpr::transfer::message::ProtocolError;
use crate::cpr::transfer::target;
use crate::machine::{Machine, Overrides};
use crate::monitor::HandoverReport;
use crate::monitor::server::MonitorState;

/// How long the source may take to connect to the main channel.
const MAIN: Duration = Duration::from_secs(30);
/// A listening target waits for its source for ever, as far as an `Instant` can tell.
const FOR_EVER: Duration = Duration::from_hours(87600);

/// A guest that came in.
pub struct Guest {
    pub(super) machine: Machine,
    /// The monitor's descriptors.
    pub(super) fds: FdTable,
    pub(super) monitor: Option<MonitorState>,
    /// How it came, where the source cannot say.
    pub(super) report: Option<Report>,
    /// How it came to the process that had resumed it early, and from there to this one.
    pub(super) early: Option<HandoverReport>,
    /// Why an exec came back to the old binary.
    pub(super) came_back: Option<String>,
    /// What the monitor's users had set before an exec.
    pub(super) settings: Option<Settings>,
    /// Where it goes from here, if this is a stopover.
    pub(super) onward: Option<Onward>,
}

/// Where a guest goes from a stopover.
#[derive(Debug)]
pub struct Onward {
    /// How the exec has gone so far.
    pub(super) journey: Journey,
    /// The sockets at which somebody may take it, in this order.
    pub(super) channels: Vec<OwnedFd>,
}

impl Guest {
    pub(super) fn new(machine: Machine, fds: FdTable, monitor: Option<MonitorState>) -> Self {
        Self {
            machine,
            fds,
            monitor,
            report: None,
            early: None,
            came_back: None,
            settings: None,
            onward: None,
        }
    }
}

/// A listening socket whose file goes away with it.
pub(super) struct Listening {
    socket: UnixListener,
    path: PathBuf,
}

impl Listening {
    pub(super) fn on(path: &Path) -> Result<Self, OwnerError> {
        let doing = || format!("listening on {}", path.display());
        // Bound under another name and renamed when it listens: who sees the path can connect.
        let staging = path.with_extension(format!("{}.tmp", std::process::id()));
        let socket = UnixListener::bind(&staging).map_err(OwnerError::io(doing()))?;
        let listening = Self { socket, path: staging };
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&listening.path, mode).map_err(OwnerError::io(doing()))?;
        if UnixStream::connect(path).is_ok() {
            let taken = std::io::Error::from_raw_os_error(libc::EADDRINUSE);
            return Err(OwnerError::io(doing())(taken));
        }
        std::fs::rename(&listening.path, path).map_err(OwnerError::io(doing()))?;
        Ok(Self { socket: listening.socket.try_clone().map_err(OwnerError::io(doing()))?, path: path.into() })
    }

    pub(super) fn accept(&self, deadline: Instant) -> Result<Channel, ProtocolError> {
        channel::wait_ready(self.socket.as_fd(), PollFlags::POLLIN, None, deadline)?;
        let (stream, _) = self.socket.accept().map_err(channel::ChannelError::from)?;
        crate::monitor::server::refuse_strangers(&stream).map_err(channel::ChannelError::from)?;
        Ok(Channel::new(stream, None).map_err(channel::ChannelError::from)?)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("removing {}: {error}", self.path.display());
        }
    }
}

/// Waits for the guest and takes it over.
pub(super) fn receive(origin: &Origin, overrides: &Overrides) -> Result<Guest, OwnerError> {
    match origin {
        Origin::Listen(path, main) => listen(path, main.as_deref(), overrides),
        Origin::Connected(fd) => {
            let taken = target::take_over(connected(*fd)?, || Err(no_main()), overrides)?;
            Ok(Guest::new(taken.machine, taken.fds, taken.monitor))
        }
        Origin::Stopover(sockets) => stop_over(*sockets, overrides),
        Origin::Saved(place) => {
            let (machine, report) = reboot::load::load(place, overrides)?;
            Ok(Guest { report: Some(report), ..Guest::new(machine, FdTable::new(), None) })
        }
        Origin::Exec(arrival) => {
            let Arrived { machine, fds, monitor, report, came_back, settings } =
                arrive::arrive(*arrival, overrides)?;
            let (report, settings) = (Some(report), Some(settings));
            Ok(Guest { report, came_back, settings, ..Guest::new(machine, fds, monitor) })
        }
        Origin::Early(monitor, info) => early::take_over(monitor, info, overrides),
        Origin::Deferred => Err(OwnerError::NoGuest),
    }
}

fn listen(path: &Path, main: Option<&Path>, overrides: &Overrides) -> Result<Guest, OwnerError> {
    let cpr = Listening::on(path)?;
    let main = main.filter(|main| *main != path).map(Listening::on).transpose()?;
    tracing::info!("waiting for a guest on {}", path.display());
    let channel = cpr.accept(Instant::now() + FOR_EVER).map_err(target::TargetError::from)?;
    drop(cpr);
    let accept_main = || main.as_ref().ok_or_else(no_main)?.accept(Instant::now() + MAIN);
    let taken = target::take_over(channel, accept_main, overrides)?;
    Ok(Guest::new(taken.machine, taken.fds, taken.monitor))
}

/// Takes the guest of a process that is about to execute its new binary.
fn stop_over(sockets: Sockets, overrides: &Overrides) -> Result<Guest, OwnerError> {
    let doing = "using the inherited sockets";
    let take = |number| inherit::take(number).map_err(OwnerError::io(doing));
    let channels = vec![take(sockets.onward)?, take(sockets.back)?];
    let taken = target::take_over(connected(sockets.from)?, || Err(no_main()), overrides)?;
    let journey = taken.journey.ok_or_else(|| {
        OwnerError::io(doing)(std::io::Error::other("the process at the other end executes nothing"))
    })?;
    let journey = journey.and("away", &taken.report);
    let settings = Some(journey.settings.clone());
    let onward = Some(Onward { journey, channels });
    Ok(Guest { settings, onward, ..Guest::new(taken.machine, taken.fds, taken.monitor) })
}

fn connected(fd: RawFd) -> Result<Channel, OwnerError> {
    let taken = inherit::take(fd).and_then(|fd| Channel::new(UnixStream::from(fd), None));
    taken.map_err(OwnerError::io(format!("using the inherited descriptor {fd}")))
}

pub(super) fn no_main() -> ProtocolError {
    ProtocolError::Malformed {
        kind: "Hello",
        why: "the source wants a main channel of its own, and this target has none: start it with --main"
            .into(),
    }
}
