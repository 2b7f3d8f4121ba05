//! The process that owns a guest: its event loop, signals, monitor and handovers.
//!
//! 1. The main thread runs the loop: monitor, serial port, signals, and what other threads ask of it ([`inbox`]).
//! 2. A handover runs on a thread of its own, so that the monitor answers and can cancel meanwhile (`handover`).
//! 3. Whoever gave the guest away keeps nothing of it: RAM, descriptors and VM are let go of, and `cont` is refused.

mod agent;
mod awake;
mod control;
pub mod early;
mod handover;
pub mod inbox;
mod incoming;
mod main_loop;
mod release;
mod service;
mod signals;
mod stopover;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Instant;

use self::awake::StayAwake;
use self::inbox::Inbox;
pub use self::main_loop::{Ended, Owner};
use crate::config::Uuid;
use crate::cpr::Mode;
use crate::cpr::error::HandoverError;
use crate::cpr::error::InPhase;
use crate::cpr::exec::command::Arrival;
use crate::cpr::exec::depart::Departure;
use crate::cpr::exec::state::Settings;
use crate::cpr::exec::stopover::Sockets;
use crate::cpr::fds::FdTable;
use crate::cpr::format::StateWriter;
use crate::cpr::reboot::Place;
use crate::cpr::report::Phase;
use crate::cpr::report::{Report, Stopwatch};
use crate::cpr::transfer::source::{ReadyTarget, Terms};
use crate::machine::events::MachineEvent;
use crate::machine::{Entrance, Machine, MachineError, Waiting};
use crate::monitor::events::EventSender;
use crate::monitor::paths;
use crate::monitor::server::MonitorServer;
use crate::monitor::{
    EarlyInfo, HandoverReport, Incoming as IncomingFrom, MigrateCapabilities, MigrateParameters,
    MigrationInfo,
};

/// Where a guest comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A process that will connect to this socket; and to the second for the main channel, if there is one.
    Listen(PathBuf, Option<PathBuf>),
    /// A process at the other end of this descriptor.
    Connected(std::os::fd::RawFd),
    /// Where it was saved to.
    Saved(Place),
    /// The process that has resumed the guest early, and listens at this monitor.
    Early(PathBuf, Box<EarlyInfo>),
    /// The stopover that this process's guest is in since it executed this image.
    Exec(Arrival),
    /// A process that is about to execute its new binary; from here it goes on.
    Stopover(Sockets),
    /// Whatever `migrate-incoming` will say.
    Deferred,
}

/// How the process runs, apart from what its guest is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// The monitor's socket; absent: the one that comes with the guest, or the one named after it.
    pub monitor: Option<PathBuf>,
    /// Whether the guest waits for `cont`, even if it ran.
    pub paused: bool,
    /// What becomes of a saved guest that waits in the RAM that another is booted in.
    pub waiting: Waiting,
    /// What differs here from what the saved state says (`KEY=VALUE`).
    pub set: Vec<String>,
    /// Whether a guest whose RAM is in its file may run before all of it is read.
    pub lazy: bool,
    /// Whether the guest is resumed early, for its unit to take it over from here ([`early`]).
    pub early: bool,
}

/// Why the process could not run its guest.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A transfer.
    #[error(transparent)]
    Transfer(#[from] crate::cpr::transfer::target::TargetError),
    /// An exec.
    #[error(transparent)]
    Exec(#[from] crate::cpr::exec::arrive::ArriveError),
    /// A file.
    #[error(transparent)]
    Reboot(#[from] crate::cpr::reboot::error::RebootError),
    /// The monitor.
    #[error(transparent)]
    Monitor(#[from] crate::monitor::server::MonitorError),
    /// A guest that was resumed early.
    #[error(transparent)]
    Early(#[from] early::EarlyError),
    /// A system call failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, to what.
        doing: String,
        /// What the kernel answered.
        source: std::io::Error,
    },
    /// Ended by a signal or `quit` before a guest came.
    #[error("ended before a guest came in")]
    NoGuest,
}

impl OwnerError {
    fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}

/// What other threads ask of the main thread.
pub enum Task {
    /// SIGTERM or SIGINT.
    Terminate,
    /// Press the power button of a guest that was woken to power off.
    PressAgain,
    /// `quit`.
    Quit,
    /// The guest did something that its owner must act on.
    Machine(MachineEvent),
    /// A handover has failed, and the guest is here still.
    Stayed,
    /// Start the guest from its beginning.
    Reset {
        /// Whether the guest asked for it.
        guest: bool,
    },
    /// A guest may come in.
    Incoming(IncomingFrom),
    /// A guest came in, or could not.
    Arrived(Box<Result<incoming::Guest, OwnerError>>),
    /// Give the guest to the stopover, and execute the new binary.
    Depart {
        /// The stopover, ready for the guest.
        ready: ReadyTarget,
        /// What to execute.
        departure: Departure,
        /// The terms.
        terms: Terms,
        /// The steps so far.
        watch: Stopwatch,
    },
    /// In a stopover: give the guest to the image that came for it.
    Return {
        /// The image, ready for the guest.
        ready: ReadyTarget,
        /// Where the guest goes if not there.
        onward: incoming::Onward,
        /// The terms.
        terms: Terms,
        /// The steps so far.
        watch: Stopwatch,
    },
    /// The guest was given away.
    GivenAway(Report),
}

/// A guest that is here, was, or is to come.
#[derive(Debug, Default)]
enum Guest {
    /// None has come yet.
    #[default]
    Awaited,
    /// Here.
    Here(Arc<Machine>),
    /// Given away.
    Gone { name: String, uuid: Uuid, mode: Mode },
}

/// The last handover, or the one under way.
#[derive(Debug, Default)]
struct Handover {
    info: MigrationInfo,
    report: Option<HandoverReport>,
    cancel: Option<OwnedFd>,
}

/// What the monitor, the handover thread and the main thread share.
pub struct Shared {
    me: Weak<Self>,
    guest: Mutex<Guest>,
    /// Whether a guest is awaited, or was once: there is one in a process's life, and whoever fails to get it in ends the process.
    awaits: AtomicBool,
    /// Whether a guest may come, or has come and the main thread has not taken it in yet.
    entrance: Arc<Entrance>,
    handover: Mutex<Handover>,
    /// In a process that resumes its guest early: when it was there, and how that went.
    resumed_early: Option<Mutex<Option<(Instant, HandoverReport)>>>,
    parameters: Mutex<MigrateParameters>,
    capabilities: Mutex<MigrateCapabilities>,
    events: EventSender,
    inbox: Arc<Inbox<Task>>,
    awake: StayAwake,
    monitor: OnceLock<Arc<Mutex<MonitorServer>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn new(events: EventSender, inbox: Arc<Inbox<Task>>, early: bool) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            guest: Mutex::default(),
            awaits: AtomicBool::new(false),
            entrance: Arc::default(),
            handover: Mutex::default(),
            resumed_early: early.then(Mutex::default),
            parameters: Mutex::default(),
            capabilities: Mutex::default(),
            events,
            inbox,
            awake: StayAwake::default(),
            monitor: OnceLock::new(),
        })
    }

    /// The guest, if it is here.
    fn guest(&self) -> Option<Arc<Machine>> {
        match &*lock(&self.guest) {
            Guest::Here(machine) => Some(Arc::clone(machine)),
            Guest::Awaited | Guest::Gone { .. } => None,
        }
    }

    fn handover(&self) -> MutexGuard<'_, Handover> {
        lock(&self.handover)
    }

    fn parameters(&self) -> MutexGuard<'_, MigrateParameters> {
        lock(&self.parameters)
    }

    fn capabilities(&self) -> MutexGuard<'_, MigrateCapabilities> {
        lock(&self.capabilities)
    }

    /// Sends the monitor along: its listening sockets, and with `clients` who is connected. Not to be called with the
    /// monitor borrowed.
    fn board(&self, clients: bool, writer: &mut StateWriter, fds: &mut FdTable) -> Result<(), HandoverError> {
        let Some(monitor) = self.monitor.get() else { return Ok(()) };
        let state = lock(monitor).export(clients, fds).in_phase(Phase::Prepare)?;
        writer.put(0, &state).in_phase(Phase::Prepare)
    }

    /// Listens on the monitor socket that is named after the guest.
    fn listen_by_name(&self, name: &str) -> Result<(), OwnerError> {
        let doing = || format!("making the runtime directory {}", paths::runtime_dir().display());
        let path = paths::make_runtime_dir().map_err(OwnerError::io(doing()))?.join(paths::socket_name(name));
        match self.monitor.get() {
            Some(monitor) => Ok(lock(monitor).listen(&path)?),
            None => Ok(()),
        }
    }

    /// What the monitor's users have set, for the next image.
    fn settings(&self) -> Settings {
        let (parameters, capabilities) = (self.parameters(), self.capabilities());
        Settings {
            mode: parameters.mode,
            exec_command: parameters.cpr_exec_command.clone(),
            downtime_limit: parameters.downtime_limit,
            prepare_timeout: parameters.prepare_timeout,
            ignore_shared: capabilities.ignore_shared,
            events: capabilities.events,
        }
    }

    /// Takes over what was set in the image before this one.
    fn apply(&self, settings: &Settings) {
        *self.parameters() = MigrateParameters {
            mode: settings.mode,
            cpr_exec_command: settings.exec_command.clone(),
            downtime_limit: settings.downtime_limit,
            prepare_timeout: settings.prepare_timeout,
        };
        *self.capabilities() =
            MigrateCapabilities { ignore_shared: settings.ignore_shared, events: settings.events };
    }

    /// Where a machine's events go: to the main thread.
    fn machine_events(&self) -> crate::machine::events::EventSink {
        let inbox = Arc::clone(&self.inbox);
        Arc::new(move |event| inbox.post(Task::Machine(event)))
    }
}

/// A handover's error as people are told it.
fn told(error: &HandoverError) -> String {
    error.to_string()
}
