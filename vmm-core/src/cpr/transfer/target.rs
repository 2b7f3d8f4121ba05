//! The target's side of a transfer.
//!
//! 1. Nothing received is used before it was checked: frames, versions, sections, descriptors.
//! 2. What can be refused is refused before the guest stops, and the source is told why.
//! 3. The guest is entered only with a [`Claim`](crate::cpr::ownership::Claim) in hand.

use std::time::{Duration, Instant};

use super::channel::Channel;
use super::message::{self, Descriptors, Hello, Machine as MachineMessage, Message, PROTOCOL, ProtocolError};
use super::message::{Passengers, Ready, Refused, Running, State, Welcome};
use crate::cpr::Mode;
use crate::cpr::blockers::Blocker;
use crate::cpr::exec::state::Journey;
use crate::cpr::fds::{FdError, FdName, FdTable, MAX_FDS};
use crate::cpr::format::{FormatError, StateReader};
use crate::cpr::ownership::{Ownership, OwnershipError};
use crate::cpr::report::{Report, Stopwatch};
use crate::machine::{Ending, Incoming, LoadError, Machine, Overrides, build_name, readable_versions};
use crate::monitor::server::MonitorState;

/// For each message before the guest stops.
const PREPARE: Duration = Duration::from_secs(30);
/// For the state: the source bounds the downtime, so this only bounds how long a silent source holds us.
const STATE: Duration = Duration::from_mins(2);

/// Why the target did not take the guest.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The conversation broke.
    #[error("taking the guest over: {0}")]
    Protocol(#[from] ProtocolError),
    /// State was refused.
    #[error("taking the guest over: {0}")]
    Format(#[from] FormatError),
    /// A descriptor was refused.
    #[error("taking the guest over: {0}")]
    Fd(#[from] FdError),
    /// The machine could not be built or loaded.
    #[error("taking the guest over: {0}")]
    Load(#[from] LoadError),
    /// The source took the guest back, or the word is not one.
    #[error("taking the guest over: {0}")]
    Ownership(#[from] OwnershipError),
    /// This process is to end.
    #[error("taking the guest over: {0}")]
    Ending(#[from] Ending),
    /// This was only asked whether it could.
    #[error("this was a probe: the guest could be taken over")]
    Probe,
}

impl TargetError {
    /// What is in the way, where it is this host.
    fn blockers(&self) -> Vec<Blocker> {
        match self {
            Self::Load(error) => error.blockers(),
            _ => Vec::new(),
        }
    }
}

/// A guest that was taken over, and runs if it ran.
#[derive(Debug)]
pub struct Taken {
    /// The machine.
    pub machine: Machine,
    /// The descriptors that are not the machine's (the monitor's).
    pub fds: FdTable,
    /// The monitor's listening sockets; in an exec, with its clients.
    pub monitor: Option<MonitorState>,
    /// How an exec has gone so far.
    pub journey: Option<Journey>,
    /// How it came here.
    pub report: Report,
}

/// Takes a guest over from the source at the other end. `main` gives the main channel if the source uses another
/// socket for the state.
pub fn take_over(
    mut channel: Channel,
    main: impl FnOnce() -> Result<Channel, ProtocolError>,
    overrides: &Overrides,
) -> Result<Taken, TargetError> {
    let result = converse(&mut channel, main, overrides);
    if let Err(error) = &result
        && !matches!(error, TargetError::Probe)
    {
        let refused = Refused { reason: error.to_string(), blockers: error.blockers() };
        // The source may be gone or not listen; it learns the same from the closed channel, without the reason.
        if let Err(error) = message::send(&mut channel, &refused, Instant::now() + Duration::from_secs(1)) {
            tracing::debug!("telling the source why: {error}");
        }
    }
    result
}

fn converse(
    channel: &mut Channel,
    main: impl FnOnce() -> Result<Channel, ProtocolError>,
    overrides: &Overrides,
) -> Result<Taken, TargetError> {
    let soon = || Instant::now() + PREPARE;
    let hello = welcome(channel, soon())?;
    let (mut fds, description) = receive_with_descriptors::<MachineMessage>(channel, soon())?;
    let mut descriptors = fds.len();
    let mut reader = StateReader::parse(&description.state)?;
    let ownership = Ownership::from_fd(fds.take(&FdName::new("ownership", 0))?)?;
    let incoming = Incoming::prepare(&mut reader, &mut fds, overrides)?;
    let mut monitor = reader.take_optional(0)?;
    reader.finish()?;
    incoming.refuse_unclaimed(&fds)?;
    let mut main = if hello.separate_main { Some(main()?) } else { None };
    message::send(channel, &Ready {}, soon())?;
    if hello.probe {
        return Err(TargetError::Probe);
    }
    let mut journey = None;
    if hello.mode == Mode::CprExec {
        let (boarded, passengers) = receive_with_descriptors::<Passengers>(channel, Instant::now() + STATE)?;
        let mut reader = StateReader::parse(&passengers.state)?;
        (monitor, journey) = (reader.take_optional(0)?, Some(reader.take(0)?));
        reader.finish()?;
        descriptors += boarded.len();
        fds = boarded;
    }
    let state: State = message::receive(main.as_mut().unwrap_or(channel), Instant::now() + STATE)?;
    let mut watch = Stopwatch::start();
    let mut reader = StateReader::parse(&state.state)?;
    watch.lap("target: decode");
    // A source that has given this process up goes on: nothing of its devices' may be taken over then.
    ownership.check_offer()?;
    let loaded = incoming.load(&mut reader, &mut watch)?;
    reader.finish()?;
    overrides.entrance.begin()?;
    // The point of no return: after this swap the source never runs the guest again.
    let claim = ownership.claim()?;
    let was_running = loaded.will_run();
    let machine = loaded.enter(claim, &mut watch);
    let entered_ns = watch.last_ns();
    let report = Report {
        mode: hello.mode,
        downtime_us: was_running.then(|| entered_ns.saturating_sub(state.stopped_ns) / 1000),
        clock: None,
        total_us: watch.total(),
        phases: state.phases.into_iter().chain(watch.laps().iter().cloned()).collect(),
        state_bytes: state.state.len() as u64,
        descriptors: descriptors as u32,
        vcpus: machine.vcpu_count(),
        ram_kept: machine.ram_size(),
        ram_copied: 0,
    };
    let running = Running { entered_ns, phases: watch.laps().to_vec() };
    if let Err(error) = message::send(channel, &running, soon()) {
        tracing::warn!("telling the source that the guest runs here: {error}");
    }
    Ok(Taken { machine, fds, monitor, journey, report })
}

fn welcome(channel: &mut Channel, deadline: Instant) -> Result<Hello, TargetError> {
    let frame = channel.receive(deadline).map_err(ProtocolError::from)?;
    if let Some((found, build)) = message::peek_version(&frame).filter(|(version, _)| *version != PROTOCOL) {
        return Err(ProtocolError::Version { build, found }.into());
    }
    let hello: Hello = message::decode(&frame)?;
    hello.versions.check_writes_for(&readable_versions())?;
    tracing::info!("guest '{}' ({}) is coming from {}", hello.guest_name, hello.guest_uuid, hello.build);
    let welcome = Welcome { protocol: PROTOCOL, build: build_name(), versions: readable_versions() };
    message::send(channel, &welcome, deadline)?;
    Ok(hello)
}

/// Receives named descriptors and the message that ends them.
fn receive_with_descriptors<M: Message>(
    channel: &mut Channel,
    deadline: Instant,
) -> Result<(FdTable, M), TargetError> {
    let mut table = FdTable::new();
    loop {
        let frame = channel.receive(deadline).map_err(ProtocolError::from)?;
        if frame.kind != Descriptors::KIND {
            return Ok((table, message::decode(&frame)?));
        }
        let Descriptors { names } = message::decode(&frame)?;
        if names.len() != frame.fds.len() {
            let why = format!("{} names for {} descriptors", names.len(), frame.fds.len());
            return Err(ProtocolError::Malformed { kind: Descriptors::NAME, why }.into());
        }
        if table.len() + names.len() > MAX_FDS {
            return Err(FdError::TooMany(table.len() + names.len()).into());
        }
        for (name, fd) in names.into_iter().zip(frame.fds) {
            table.insert(name, fd)?;
        }
    }
}
