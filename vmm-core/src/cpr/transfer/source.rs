//! The source's side of a transfer.
//!
//! 1. Everything slow happens while the guest runs: only [`Phase::Stop`], [`Phase::Save`] and [`Phase::Handover`] are
//!    in the downtime.
//! 2. Until the target has claimed the ownership word, every way out of [`hand_over`] leaves the guest as it was.
//! 3. Once it has, nothing that fails is an error any more: the guest is the target's.

use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use super::channel::Channel;
use super::frame::MAX_FRAME_FDS;
use super::message::{
    self, Descriptors, Hello, Machine as MachineMessage, PROTOCOL, Passengers as PassengersMessage,
    ProtocolError, Ready, Running, State, Welcome,
};
use crate::cpr::Mode;
use crate::cpr::error::{HandoverError, InPhase};
use crate::cpr::fds::{FdName, FdTable};
use crate::cpr::format::{StateWriter, Versions};
use crate::cpr::observer::Observer;
use crate::cpr::ownership::Ownership;
use crate::cpr::report::{Phase, Report, Stopwatch};
use crate::machine::{Machine, build_name, readable_versions};

/// What goes along that is not the machine's: the monitor.
pub type Passengers<'a> = &'a mut dyn FnMut(&mut StateWriter, &mut FdTable) -> Result<(), HandoverError>;

/// The bounds on a handover's waits.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For everything before the stop.
    pub prepare: Duration,
    /// From the stop to the claim: past it, the source takes the guest back.
    pub downtime: Duration,
}

/// What a transfer is to do.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Transfer; or exec, whose guest goes to a stopover process and from there to the new image.
    pub mode: Mode,
    /// Only ask whether the target could: it is told everything but the state.
    pub probe: bool,
    /// The bounds.
    pub limits: Limits,
}

/// A target that has built the machine and waits for the state.
#[derive(Debug)]
pub struct ReadyTarget {
    channel: Channel,
    main: Option<Channel>,
    ownership: Ownership,
    versions: Versions,
    descriptors: usize,
}

/// Tells the target everything that can be told while the guest runs, until it says that it is ready.
pub fn prepare(
    machine: &Machine,
    mut channel: Channel,
    main: Option<Channel>,
    terms: Terms,
    passengers: Passengers<'_>,
    observer: &dyn Observer,
    watch: &mut Stopwatch,
) -> Result<ReadyTarget, HandoverError> {
    let deadline = Instant::now() + terms.limits.prepare;
    observer.phase(Phase::Hello);
    let versions = greet(machine, &mut channel, terms, main.is_some(), deadline).map_err(at(Phase::Hello))?;
    watch.lap(Phase::Hello.name());
    observer.phase(Phase::Prepare);
    let (ownership, word) = Ownership::create().in_phase(Phase::Prepare)?;
    let mut fds = machine.descriptors(terms.mode).in_phase(Phase::Prepare)?;
    fds.insert(FdName::new("ownership", 0), word).in_phase(Phase::Prepare)?;
    let mut writer = StateWriter::new(machine.header(terms.mode)).reading(&versions);
    machine.describe(terms.mode, &mut writer).in_phase(Phase::Prepare)?;
    passengers(&mut writer, &mut fds)?;
    let state = writer.finish().in_phase(Phase::Prepare)?;
    send_descriptors(&mut channel, &fds, deadline)
        .and_then(|()| message::send(&mut channel, &MachineMessage { state }, deadline))
        .and_then(|()| message::receive::<Ready>(&mut channel, deadline))
        .map_err(|error| at(Phase::Prepare)(last_words(&mut channel, error)))?;
    watch.lap(Phase::Prepare.name());
    Ok(ReadyTarget { channel, main, ownership, versions, descriptors: fds.len() })
}

/// Stops the guest and hands it to a target that is ready. In an exec, `boarding` tells what boards at the last moment.
pub fn hand_over(
    machine: &Machine,
    target: ReadyTarget,
    terms: Terms,
    boarding: Option<Passengers<'_>>,
    observer: &dyn Observer,
    mut watch: Stopwatch,
) -> Result<Report, HandoverError> {
    let ReadyTarget { mut channel, mut main, ownership, versions, mut descriptors } = target;
    if let Some(passengers) = boarding {
        let mut fds = FdTable::new();
        let mut writer = StateWriter::new(machine.header(terms.mode)).reading(&versions);
        passengers(&mut writer, &mut fds)?;
        let state = writer.finish().in_phase(Phase::Prepare)?;
        let deadline = Instant::now() + terms.limits.prepare;
        send_descriptors(&mut channel, &fds, deadline)
            .and_then(|()| message::send(&mut channel, &PassengersMessage { state }, deadline))
            .map_err(at(Phase::Prepare))?;
        descriptors += fds.len();
    }
    observer.phase(Phase::Stop);
    watch.lap("settle");
    let deadline = Instant::now() + terms.limits.downtime;
    let mut stopped = machine.quiesce(deadline, &mut watch).in_phase(Phase::Stop)?;
    let mut writer = StateWriter::new(machine.header(terms.mode)).reading(&versions);
    stopped.save(&mut writer, &mut watch).in_phase(Phase::Save)?;
    let state = writer.finish().in_phase(Phase::Save)?;
    let state_bytes = state.len() as u64;
    watch.lap("encode");
    // The point of no return is not here: until the target's swap, ours takes the guest back.
    stopped.offer(&ownership).in_phase(Phase::Handover)?;
    let state = State { state, stopped_ns: stopped.stopped_ns(), phases: watch.laps().to_vec() };
    let sent = message::send(main.as_mut().unwrap_or(&mut channel), &state, deadline);
    let answer = sent.and_then(|()| message::receive::<Running>(&mut channel, deadline));
    let running = match answer {
        Ok(running) => Some(running),
        Err(error) => {
            let error = last_words(&mut channel, error);
            if stopped.take_back(&ownership).is_ok() {
                return Err(at(Phase::Handover)(error));
            }
            // Claimed: whatever became of the message, the guest is the target's.
            None
        }
    };
    let was_running = stopped.was_running();
    let stopped_ns = stopped.stopped_ns();
    drop(stopped);
    watch.lap(Phase::Handover.name());
    let downtime_us = running
        .as_ref()
        .filter(|_| was_running)
        .map(|running| running.entered_ns.saturating_sub(stopped_ns) / 1000);
    let mut phases = watch.laps().to_vec();
    phases.extend(running.into_iter().flat_map(|running| running.phases));
    Ok(Report {
        mode: terms.mode,
        downtime_us,
        clock: None,
        total_us: watch.total(),
        phases,
        state_bytes,
        descriptors: descriptors as u32,
        vcpus: machine.vcpu_count(),
        ram_kept: machine.ram_size(),
        ram_copied: 0,
    })
}

/// Turns a broken conversation into the error of a phase.
fn at(phase: Phase) -> impl Fn(ProtocolError) -> HandoverError {
    move |error| match error {
        ProtocolError::Channel(super::channel::ChannelError::Cancelled) => HandoverError::cancelled(phase),
        ProtocolError::Refused(why) => HandoverError::new(phase, format!("the target refused: {why}")),
        error => HandoverError::new(phase, format!("talking to the target: {error}")),
    }
}

/// For what a peer said before it closed to arrive.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// When the peer closed on us, it may have said why before.
fn last_words(channel: &mut Channel, error: ProtocolError) -> ProtocolError {
    if !matches!(error, ProtocolError::Channel(super::channel::ChannelError::Closed)) {
        return error;
    }
    match message::receive::<Ready>(channel, Instant::now() + LAST_WORDS) {
        Err(refused @ ProtocolError::Refused(_)) => refused,
        _ => error,
    }
}

fn greet(
    machine: &Machine,
    channel: &mut Channel,
    terms: Terms,
    separate_main: bool,
    deadline: Instant,
) -> Result<Versions, ProtocolError> {
    let config = machine.config();
    let hello = Hello {
        protocol: PROTOCOL,
        build: build_name(),
        mode: terms.mode,
        guest_name: config.name.clone(),
        guest_uuid: config.uuid,
        versions: readable_versions(),
        probe: terms.probe,
        separate_main,
    };
    message::send(channel, &hello, deadline)?;
    let frame = channel.receive(deadline)?;
    if let Some((found, build)) = message::peek_version(&frame).filter(|(version, _)| *version != PROTOCOL) {
        return Err(ProtocolError::Version { build, found });
    }
    let welcome: Welcome = message::decode(&frame)?;
    Ok(welcome.versions)
}

fn send_descriptors(channel: &mut Channel, fds: &FdTable, deadline: Instant) -> Result<(), ProtocolError> {
    let (names, fds): (Vec<_>, Vec<RawFd>) =
        fds.iter().map(|(name, fd)| (name.clone(), fd.as_raw_fd())).unzip();
    for (names, fds) in names.chunks(MAX_FRAME_FDS).zip(fds.chunks(MAX_FRAME_FDS)) {
        message::send_with_fds(channel, &Descriptors { names: names.to_vec() }, fds, deadline)?;
    }
    Ok(())
}
