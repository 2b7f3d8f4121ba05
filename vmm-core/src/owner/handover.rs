//! A handover, on its own thread.
//!
//! 1. It is refused before anything is touched, with every blocker named, or it is started.
//! 2. It ends as completed, failed or cancelled; what is not completed leaves the guest as it was.
//! 3. News is told while the guest runs: nothing is emitted between its stop and the end.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::control::generic;
use super::{Guest, Handover, Shared, Task, agent, lock, release, told};
use crate::cpr::Mode;
use crate::cpr::blockers::Blocker;
use crate::cpr::error::{HandoverError, InPhase};
use crate::cpr::exec::command::ExecCommand;
use crate::cpr::exec::depart::Departure;
use crate::cpr::exec::probe;
use crate::cpr::exec::stopover::Stopover;
use crate::cpr::liveupdate;
use crate::cpr::observer::Observer;
use crate::cpr::reboot::{self, Place};
use crate::cpr::report::{Phase, Report, Stopwatch};
use crate::cpr::transfer::channel::{Channel, was_cancelled};
use crate::cpr::transfer::source::{self, Limits, Terms};
use crate::machine::Machine;
use crate::machine::run_state::RunState;
use crate::memory::{RamBlock, RamFate};
use crate::monitor::events::Event;
use crate::monitor::{
    CheckRequest, CommandError, Destination, HandoverReport, MigrationInfo, MigrationStatus, RamProgress,
};

impl Destination {
    /// The mode that goes there.
    fn mode(&self) -> Mode {
        match self {
            Self::Transfer { .. } => Mode::CprTransfer,
            Self::Exec => Mode::CprExec,
            Self::Reboot(_) => Mode::CprReboot,
        }
    }

    /// What becomes of RAM on the way there, where it is the kernel that decides.
    fn fate(&self) -> Option<RamFate> {
        matches!(self, Self::Reboot(Place::LiveUpdate(_))).then_some(RamFate::Preserved)
    }

    /// Where a guest that is called so goes, which is a name of its own where none was given.
    fn of(self, guest: &str) -> Self {
        match self {
            Self::Reboot(Place::LiveUpdate(name)) if name.is_empty() => {
                Self::Reboot(Place::LiveUpdate(guest.to_owned()))
            }
            other => other,
        }
    }
}

/// Tells of a handover as it goes by.
struct Watched<'a> {
    shared: &'a Shared,
    mode: Mode,
    started: Instant,
}

impl Observer for Watched<'_> {
    fn phase(&self, phase: Phase) {
        self.shared.tell(self.mode, phase, self.started);
    }

    fn ram(&self, copied: u64, total: u64) {
        self.shared.copied(copied, total);
    }
}

impl Shared {
    pub(super) fn limits(&self) -> Limits {
        let parameters = self.parameters();
        Limits {
            prepare: Duration::from_millis(parameters.prepare_timeout),
            downtime: Duration::from_millis(parameters.downtime_limit),
        }
    }

    /// What becomes of RAM in the next reboot.
    pub(super) fn ram_fate(&self) -> RamFate {
        RamFate::of(!self.capabilities().ignore_shared)
    }

    /// What stands in the way, as far as it can be known without doing it.
    pub(super) fn blockers(&self, guest: &Machine, request: &CheckRequest) -> Vec<Blocker> {
        let CheckRequest { mode, destination, exec_command, fate, kexec, suspend } = request;
        let destination = destination.clone().map(|to| to.of(&guest.config().name));
        let fate = destination.as_ref().and_then(Destination::fate).unwrap_or(*fate);
        let mut blockers = guest.blockers(*mode, fate, *suspend);
        if *suspend {
            blockers.extend(unsuspendable(guest));
        }
        match &destination {
            Some(Destination::Transfer { cpr, main }) => {
                for path in [cpr, main] {
                    blockers.extend(unreachable(path));
                }
            }
            Some(Destination::Reboot(Place::File(file))) => blockers.extend(unwritable(file, *kexec)),
            Some(Destination::Reboot(Place::LiveUpdate(name))) => {
                blockers.extend(liveupdate::blocker(name, guest.ram_block()));
            }
            Some(Destination::Exec) | None => {}
        }
        if *mode == Mode::CprExec && self.resumed_early.is_some() {
            let why = "the guest is in the process that has resumed it early, whose binary is the initial RAM disk's: \
                       its unit takes it from there (cpr-load start)";
            blockers.push(Blocker::new("early resume", why.to_owned()));
        } else if *mode == Mode::CprExec {
            let set = self.parameters().cpr_exec_command.clone();
            blockers.extend(executable(exec_command.as_ref().unwrap_or(&set)).err());
        }
        if *mode == Mode::CprReboot && fate == RamFate::Stays {
            blockers.extend(no_part_for(guest));
        }
        if *kexec {
            blockers.extend(ends_with_the_kernel(guest, *mode, fate));
        }
        blockers.dedup();
        blockers
    }

    /// Starts a handover, or refuses it.
    pub(super) fn start_handover(&self, destination: Destination, wake: bool) -> Result<(), CommandError> {
        let guest = self.needs_guest()?;
        let mut handover = self.handover();
        if handover.cancel.is_some() {
            return Err(CommandError::generic("a handover is under way already; migrate_cancel ends it"));
        }
        let destination = destination.of(&guest.config().name);
        let fate = destination.fate().unwrap_or_else(|| self.ram_fate());
        let request = CheckRequest {
            mode: destination.mode(),
            destination: Some(destination.clone()),
            exec_command: None,
            fate,
            kexec: false,
            suspend: false,
        };
        let blockers = self.blockers(&guest, &request);
        if !blockers.is_empty() {
            return Err(generic(HandoverError::blocked(blockers)));
        }
        let cancel = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(generic)?;
        let cancel = OwnedFd::from(cancel);
        let watched = cancel.try_clone().map_err(generic)?;
        let me = self.me.upgrade().ok_or_else(|| CommandError::generic("this process is ending"))?;
        let run = move || me.run(&guest, destination, fate, wake, watched);
        std::thread::Builder::new().name("handover".into()).spawn(run).map_err(generic)?;
        let info = MigrationInfo { status: MigrationStatus::Setup, ..MigrationInfo::default() };
        *handover = Handover { info, report: None, cancel: Some(cancel) };
        self.events.emit(Event::Migration(MigrationStatus::Setup));
        Ok(())
    }

    /// Asks a handover under way to end. It does at its next wait, if the guest was not claimed by then.
    pub(super) fn cancel_handover(&self) {
        let mut handover = self.handover();
        let Some(cancel) = &handover.cancel else { return };
        if let Err(error) = nix::unistd::write(cancel, &1u64.to_ne_bytes()) {
            tracing::warn!("cancelling: {error}");
        }
        handover.info.status = MigrationStatus::Cancelling;
        drop(handover);
        self.events.emit(Event::Migration(MigrationStatus::Cancelling));
    }

    fn run(
        &self,
        guest: &Arc<Machine>,
        destination: Destination,
        fate: RamFate,
        wake: bool,
        cancel: OwnedFd,
    ) {
        let mut watch = Stopwatch::start();
        let mode = destination.mode();
        let observer = Watched { shared: self, mode, started: Instant::now() };
        let limits = self.limits();
        if let Err(error) = wait_for_ram(guest, &cancel, &mut watch) {
            return self.failed(mode, &error);
        }
        let result = match destination {
            Destination::Transfer { cpr, main } => {
                self.transfer(guest, &cpr, &main, limits, &cancel, &observer, watch)
            }
            Destination::Reboot(place) => {
                let order = reboot::save::Order { place, fate, wake };
                reboot::save::save(guest, &order, limits, &cancel, &observer, watch)
            }
            Destination::Exec => match self.lead_away(guest, limits, cancel, &observer, watch) {
                // The main thread goes on with it.
                Ok(()) => return,
                Err(error) => Err(error),
            },
        };
        match result {
            Ok(report) => self.inbox.post(Task::GivenAway(report)),
            Err(error) => self.failed(mode, &error),
        }
    }

    /// Asks the new binary whether it could, makes a stopover ready, then leaves the rest to the main thread, which serves
    /// the monitor: its clients go along.
    fn lead_away(
        &self,
        guest: &Machine,
        limits: Limits,
        cancel: OwnedFd,
        observer: &dyn Observer,
        mut watch: Stopwatch,
    ) -> Result<(), HandoverError> {
        let words = self.parameters().cpr_exec_command.clone();
        let command = ExecCommand::new(&words).in_phase(Phase::Connect)?;
        let asking = cancel.try_clone().in_phase(Phase::Connect)?;
        probe::probe(guest, &command, limits, asking, observer, &mut watch)?;
        let (stopover, channel) = Stopover::start()?;
        let departure = Departure::new(command, stopover).in_phase(Phase::Connect)?;
        watch.lap("stopover");
        let terms = Terms { mode: Mode::CprExec, probe: false, limits };
        let ready = Channel::new(channel, Some(cancel)).in_phase(Phase::Connect).and_then(|channel| {
            let aboard = &mut |_: &mut _, _: &mut _| Ok(());
            source::prepare(guest, channel, None, terms, aboard, observer, &mut watch)
        });
        match ready {
            Ok(ready) => self.inbox.post(Task::Depart { ready, departure, terms, watch }),
            Err(error) => {
                departure.call_off();
                return Err(error);
            }
        }
        Ok(())
    }

    /// Notes how much RAM is copied, for whoever asks.
    fn copied(&self, copied: u64, total: u64) {
        self.handover().info.ram = Some(RamProgress::of(copied, total));
    }

    /// Tells that a phase begins, unless the guest stands.
    fn tell(&self, mode: Mode, phase: Phase, started: Instant) {
        if matches!(phase, Phase::Stop | Phase::Save | Phase::Handover) {
            return;
        }
        let mut handover = self.handover();
        if handover.info.status == MigrationStatus::Setup && phase == Phase::Prepare {
            handover.info.status = MigrationStatus::Active;
            self.events.emit(Event::Migration(MigrationStatus::Active));
        }
        drop(handover);
        let elapsed_us = started.elapsed().as_micros() as u64;
        self.events.emit(Event::Phase { mode, phase: phase.name().into(), elapsed_us });
    }

    /// The guest is somebody else's. Nothing of it is kept. Called on the main thread.
    pub(super) fn gave_away(&self, report: Report) {
        let mode = report.mode;
        {
            let mut guest = lock(&self.guest);
            if let Guest::Here(machine) = &*guest {
                machine.devices().hand_over();
                let (name, uuid) = (machine.config().name.clone(), machine.config().uuid);
                if let Guest::Here(machine) = std::mem::replace(&mut *guest, Guest::Gone { name, uuid, mode })
                {
                    release::release(machine);
                }
            }
        }
        self.events.emit(Event::Stop);
        self.completed(report);
    }

    /// Tells that a handover is done.
    pub(super) fn completed(&self, report: Report) {
        let mode = report.mode;
        let report = HandoverReport {
            mode: report.mode,
            status: MigrationStatus::Completed,
            error_desc: None,
            phases: report.phases,
            downtime_us: report.downtime_us,
            clock: report.clock,
            total_us: report.total_us,
            state_bytes: report.state_bytes,
            ram_copied: report.ram_copied,
            ram_kept: report.ram_kept,
            descriptors: report.descriptors,
            vcpus: report.vcpus,
            taken_over: None,
        };
        if let Some(early) = self.resumed_early.as_ref().filter(|_| mode == Mode::CprReboot) {
            lock(early).get_or_insert_with(|| (Instant::now(), report.clone()));
        }
        self.tell_completed(report);
    }

    /// Tells what a handover that is done came to.
    pub(super) fn tell_completed(&self, report: HandoverReport) {
        let milliseconds = |us: u64| us.div_ceil(1000);
        tracing::info!("{} completed; downtime {:?} us", report.mode, report.downtime_us);
        let mut handover = self.handover();
        handover.cancel = None;
        handover.info = MigrationInfo {
            status: MigrationStatus::Completed,
            total_time: Some(milliseconds(report.total_us)),
            downtime: report.downtime_us.map(milliseconds),
            phases: report.phases.clone(),
            ..MigrationInfo::default()
        };
        handover.report = Some(report);
        drop(handover);
        self.events.emit(Event::Migration(MigrationStatus::Completed));
    }

    /// Tells that a handover did not happen.
    pub(super) fn failed(&self, mode: Mode, error: &HandoverError) {
        let status = if error.cancelled { MigrationStatus::Cancelled } else { MigrationStatus::Failed };
        // Devices that were asked for their descriptors hold new clients back until they hear that it is over.
        if let Some(guest) = self.guest() {
            guest.release_hold();
        }
        self.inbox.post(Task::Stayed);
        let why = told(error);
        tracing::error!("{mode} {status}: {why}");
        let mut handover = self.handover();
        handover.cancel = None;
        handover.info = MigrationInfo { status, error_desc: Some(why.clone()), ..MigrationInfo::default() };
        handover.report = Some(HandoverReport {
            mode,
            status,
            error_desc: Some(why),
            phases: Vec::new(),
            downtime_us: None,
            clock: None,
            total_us: 0,
            state_bytes: 0,
            ram_copied: 0,
            ram_kept: 0,
            descriptors: 0,
            vcpus: 0,
            taken_over: None,
        });
        drop(handover);
        self.events.emit(Event::Migration(status));
    }
}

impl Shared {
    #[expect(clippy::too_many_arguments, reason = "each is another thing")]
    fn transfer(
        &self,
        guest: &Machine,
        cpr: &Path,
        main: &Path,
        limits: Limits,
        cancel: &OwnedFd,
        observer: &dyn Observer,
        mut watch: Stopwatch,
    ) -> Result<Report, HandoverError> {
        observer.phase(Phase::Connect);
        let connect = |path: &Path| {
            let stream = UnixStream::connect(path).map_err(|error| {
                HandoverError::new(Phase::Connect, format!("connecting to {}: {error}", path.display()))
            })?;
            let cancel = cancel.try_clone().in_phase(Phase::Connect)?;
            Channel::new(stream, Some(cancel)).in_phase(Phase::Connect)
        };
        let channel = connect(cpr)?;
        let main = if main == cpr { None } else { Some(connect(main)?) };
        watch.lap(Phase::Connect.name());
        let terms = Terms { mode: Mode::CprTransfer, probe: false, limits };
        let mut board = |writer: &mut _, fds: &mut _| self.board(false, writer, fds);
        let ready = source::prepare(guest, channel, main, terms, &mut board, observer, &mut watch)?;
        if was_cancelled(cancel.as_fd()) {
            return Err(HandoverError::cancelled(Phase::Prepare));
        }
        source::hand_over(guest, ready, terms, None, observer, watch)
    }
}

/// Waits until all of the guest's RAM is there: somebody else would find zeros in the place of what is not.
fn wait_for_ram(guest: &Machine, cancel: &OwnedFd, watch: &mut Stopwatch) -> Result<(), HandoverError> {
    if guest.ram_outstanding().is_none() {
        return Ok(());
    }
    tracing::info!("the handover waits until all of the guest's RAM is there");
    let came = guest.wait_for_ram(&|| was_cancelled(cancel.as_fd()));
    watch.lap("wait for RAM");
    if came { Ok(()) } else { Err(HandoverError::cancelled(Phase::Prepare)) }
}

/// What stands in the way of a state file with this name.
fn unwritable(file: &Path, kexec: bool) -> Option<Blocker> {
    let why = match reboot::file::StateFile::create(file) {
        Err(error) => error.to_string(),
        Ok(made) if kexec && made.is_in_memory() => {
            format!("{} is in memory, which ends with the host's kernel: put it on a disk", file.display())
        }
        Ok(_) => match reboot::waiting::waits_in(file) {
            Ok(false) => return None,
            Ok(true) => format!(
                "a guest that was saved waits in {}: load that, name another file, or remove this one",
                file.display()
            ),
            Err(error) => format!("{error}; a guest may wait in it: name another file, or remove this one"),
        },
    };
    Some(Blocker::new("state file", why))
}

/// What keeps the guest from being told of in the DAX device that it has a part of.
fn no_part_for(guest: &Machine) -> Option<Blocker> {
    let why = reboot::parts::check(guest.ram_block()?, guest.config().uuid).err()?;
    Some(Blocker::new("pc.ram", why.to_string()))
}

/// What of the guest ends with the host's kernel, and must not where that goes into another one meanwhile.
fn ends_with_the_kernel(guest: &Machine, mode: Mode, fate: RamFate) -> Option<Blocker> {
    if mode != Mode::CprReboot {
        let why = format!("{mode} ends with the host's kernel: only cpr-reboot outlives it");
        return Some(Blocker::new("mode", why));
    }
    guest.ram_block().filter(|_| fate == RamFate::Stays).and_then(RamBlock::outlives_kexec)
}

/// What stands in the way of suspending a guest, which sleeps after that.
fn unsuspendable(guest: &Machine) -> Option<Blocker> {
    match guest.run_state() {
        RunState::Suspended => None,
        RunState::Paused => Some(Blocker::new(
            "run state",
            "the guest is paused, and cannot suspend: let it go on first (cont)",
        )),
        _ => agent::socket(guest.config()).err().map(|why| Blocker::new("agent", why)),
    }
}

fn unreachable(path: &Path) -> Option<Blocker> {
    use std::os::unix::fs::FileTypeExt;
    let why = match std::fs::metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => return None,
        Ok(_) => "it is no socket".to_owned(),
        Err(error) => error.to_string(),
    };
    let way_out = "start the target first: cpr-load resume --from unix:PATH";
    Some(Blocker::new("target", format!("{}: {why}; {way_out}", path.display())))
}

fn executable(words: &[String]) -> Result<(), Blocker> {
    let blocker = |why: String| Blocker::new("exec command", why);
    let command = ExecCommand::new(words).map_err(|error| blocker(error.to_string()))?;
    command.find().map_err(|error| blocker(format!("{}: {error}", command.program().display())))
}
