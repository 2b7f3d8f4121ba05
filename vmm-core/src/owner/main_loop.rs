//! The main thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use event_manager::{EventManager, SubscriberId, SubscriberOps};

use super::inbox::{Inbox, InboxWaker};
use super::release;
use super::service::{self, Watchdog};
use super::signals::Signals;
use super::{Guest, Options, Origin, OwnerError, Shared, Task, lock};
use super::{early, incoming};
use crate::config::{DeviceConfig, MachineConfig};
use crate::cpr::Mode;
use crate::cpr::error::HandoverError;
use crate::cpr::ownership::Claim;
use crate::cpr::reboot::copy::{CopyError, Lost};
use crate::cpr::report::{Phase, Stopwatch};
use crate::devices::Subscriber;
use crate::devices::vfio::Notice;
use crate::machine::events::MachineEvent;
use crate::machine::run_state::RunState;
use crate::machine::{Machine, MachineError, Overrides};
use crate::monitor::events::{Event, EventSender};
use crate::monitor::server::MonitorServer;
use crate::monitor::{Control, Incoming as IncomingFrom};
use crate::priority::stand_back;

/// For what clients are still to be told at the end.
const FAREWELL: Duration = Duration::from_millis(500);

/// How the process ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The guest powered off, or `quit` or a second signal ended it.
    GuestEnded,
    /// The guest lives on elsewhere.
    GivenAway,
    /// KVM could not go on with the guest.
    Failed,
}

/// What the process ends with whose guest has run, and cannot go on.
const LOST: i32 = 4;

/// RAM of the guest cannot be had that it runs on. Threads, and the kernel for them, may wait for it, and must find nothing else in its place:
/// the process ends as it is.
fn lost(why: &CopyError) {
    service::stopping(&why.to_string());
    std::process::exit(LOST);
}

/// The process that owns a guest.
pub struct Owner {
    shared: Arc<Shared>,
    manager: EventManager<Subscriber>,
    monitor: Arc<Mutex<MonitorServer>>,
    /// The guest's devices.
    devices: Vec<SubscriberId>,
    options: Options,
    terminating: bool,
    /// The guest is to power off, should it stay: it was being handed over when that was asked.
    terminate_due: bool,
    /// What would end the process, and what the guest has done, while it is just coming in.
    postponed: Vec<Task>,
    ended: Option<Result<Ended, OwnerError>>,
}

impl Owner {
    /// A process without a guest. To be called before any thread is started: it blocks signals for all of them.
    pub fn new(options: Options) -> Result<Self, OwnerError> {
        let inbox = Arc::new(Inbox::new().map_err(OwnerError::io("making an eventfd"))?);
        let signals = Signals::block(Arc::clone(&inbox)).map_err(OwnerError::io("catching signals"))?;
        let events = EventSender::new().map_err(OwnerError::io("making an eventfd"))?;
        let shared = Shared::new(events.clone(), Arc::clone(&inbox), options.early);
        let mut manager = EventManager::new()
            .map_err(|e| OwnerError::io("making an epoll")(std::io::Error::other(format!("{e:?}"))))?;
        let monitor =
            Arc::new(Mutex::new(MonitorServer::new(Arc::clone(&shared) as Arc<dyn Control>, events)));
        // Nobody else sets it.
        let _ = shared.monitor.set(Arc::clone(&monitor));
        manager.add_subscriber(Arc::new(Mutex::new(InboxWaker(inbox))) as Subscriber);
        manager.add_subscriber(Arc::new(Mutex::new(signals)) as Subscriber);
        manager.add_subscriber(Arc::clone(&monitor) as Subscriber);
        Ok(Self {
            shared,
            manager,
            monitor,
            devices: Vec::new(),
            options,
            terminating: false,
            terminate_due: false,
            postponed: Vec::new(),
            ended: None,
        })
    }

    /// Boots a guest and serves it until it ends or is given away.
    pub fn boot(mut self, config: MachineConfig) -> Result<Ended, OwnerError> {
        // The monitor first: it refuses a name that is taken, before anything is built.
        self.listen(&config.name)?;
        let loaded = Machine::boot(config, self.options.waiting, self.shared.machine_events())?;
        let loaded = if self.options.paused { loaded.paused() } else { loaded };
        let machine = loaded.enter(Claim::cold_boot(), &mut Stopwatch::start());
        let (name, state) = (machine.config().name.clone(), machine.run_state());
        self.settle(machine);
        service::ready(&name, state);
        self.run()
    }

    /// Takes a guest in and serves it until it ends or is given away.
    pub fn resume(mut self, origin: Origin) -> Result<Ended, OwnerError> {
        if let Some(path) = self.options.monitor.clone() {
            self.server().listen(&path)?;
        }
        match origin {
            Origin::Deferred => {}
            // This thread is all there is after an exec, and nobody may wait for the guest longer than needed.
            Origin::Exec(_) => {
                let guest = incoming::receive(&origin, &self.overrides())?;
                self.take_in(guest);
            }
            origin => self.start_receiving(origin)?,
        }
        self.run()
    }

    fn overrides(&self) -> Overrides {
        // The guest's own monitor is claimed before the guest is.
        let shared = Arc::clone(&self.shared);
        let (by_name, early) = (self.options.monitor.is_none(), self.options.early);
        let admit = move |config: &MachineConfig| {
            if early {
                early::admit(config)?;
            }
            if by_name {
                shared.listen_by_name(&config.name)?;
            }
            Ok(())
        };
        Overrides {
            set: self.options.set.clone(),
            paused: self.options.paused,
            events: self.shared.machine_events(),
            admit: Arc::new(admit),
            trial: false,
            lazy: self.options.lazy.then(|| Arc::new(lost) as Lost),
            entrance: Arc::clone(&self.shared.entrance),
        }
    }

    fn server(&self) -> std::sync::MutexGuard<'_, MonitorServer> {
        self.monitor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_receiving(&self, origin: Origin) -> Result<(), OwnerError> {
        self.shared.awaits.store(true, SeqCst);
        let (overrides, inbox) = (self.overrides(), Arc::clone(&self.shared.inbox));
        let receive = move || {
            let received = catch_unwind(AssertUnwindSafe(|| incoming::receive(&origin, &overrides)));
            let panicked =
                |_| Err(OwnerError::io("taking a guest in")(std::io::Error::other("its thread panicked")));
            inbox.post(Task::Arrived(Box::new(received.unwrap_or_else(panicked))));
        };
        let started = std::thread::Builder::new().name("incoming".into()).spawn(receive);
        started.map(drop).map_err(OwnerError::io("starting a thread"))
    }

    /// Listens on the monitor's socket: the one that was asked for, or the one named after the guest.
    fn listen(&self, name: &str) -> Result<(), OwnerError> {
        match &self.options.monitor {
            Some(path) => Ok(self.server().listen(path)?),
            None => self.shared.listen_by_name(name),
        }
    }

    /// Serves a machine that was just entered.
    fn settle(&mut self, machine: Machine) {
        let machine = Arc::new(machine);
        let subscribers = machine.devices().subscribers().into_iter();
        self.devices = subscribers.map(|subscriber| self.manager.add_subscriber(subscriber)).collect();
        *lock(&self.shared.guest) = Guest::Here(machine);
    }

    fn take_in(&mut self, guest: incoming::Guest) {
        let incoming::Guest { machine, mut fds, monitor, report, early, came_back, settings, onward } = guest;
        if let Some(settings) = settings {
            self.shared.apply(&settings);
        }
        let state = machine.run_state();
        let name = machine.config().name.clone();
        tracing::info!("guest '{name}' is here, {state}");
        self.settle(machine);
        self.shared.entrance.settled();
        self.shared.events.wake();
        for task in self.postponed.drain(..) {
            self.shared.inbox.post(task);
        }
        match monitor {
            // With a monitor of its own, the process has no use for the one that came along.
            Some(monitor) if self.options.monitor.is_none() => {
                let adopted = self.server().adopt(monitor, &mut fds);
                // The guest is here and runs: whatever is wrong with its monitor must not end it.
                if let Err(error) = adopted.map_err(OwnerError::from).or_else(|_| self.listen(&name)) {
                    tracing::error!("guest '{name}' runs without its monitor: {error}");
                }
            }
            // It listens already: by its own path, or by the name that the file gave before the guest was claimed.
            Some(_) | None => {}
        }
        if let Some(onward) = onward {
            // Its clients are told once it has come where it is going.
            return self.shared.begin_return(onward);
        }
        service::ready(&name, state);
        if let Some(why) = came_back {
            self.shared.failed(Mode::CprExec, &HandoverError::new(Phase::Handover, why));
        } else if let Some(report) = report {
            if report.mode == Mode::CprExec {
                // Of its clients some were connected before it stood.
                self.shared.events.emit(Event::Stop);
            }
            self.shared.completed(report);
        } else if let Some(report) = early {
            self.shared.tell_completed(report);
        }
        if state == RunState::Running {
            self.shared.events.emit(Event::Resume);
        }
        let Some(machine) = self.shared.guest() else { return };
        if machine.is_to_be_woken() {
            if let Err(error) = self.shared.wake(&machine) {
                tracing::error!("waking guest '{name}', which was suspended to be saved: {error}");
            }
        } else {
            self.wake_if_wanted(&machine);
        }
    }

    fn run(mut self) -> Result<Ended, OwnerError> {
        let mut watchdog = Watchdog::from_environment();
        let ended = loop {
            while let Some(task) = self.shared.inbox.take() {
                self.handle(task);
            }
            if let Some(ended) = self.ended.take() {
                break ended;
            }
            let wait = watchdog.as_mut().map_or(-1, Watchdog::tell);
            if let Err(error) = self.manager.run_with_timeout(wait) {
                break Err(OwnerError::io("waiting for events")(std::io::Error::other(format!("{error:?}"))));
            }
        };
        let given_away = matches!(*lock(&self.shared.guest), Guest::Gone { .. });
        if matches!(ended, Ok(Ended::GuestEnded | Ended::Failed)) {
            service::stopping("the guest has ended");
        }
        self.server().finish(FAREWELL);
        if given_away {
            // Nobody waits for this process any more; what its end tears down must not be in the guest's way.
            self.server().hang_up();
            stand_back();
        }
        // The machine's threads must end before its VM and its memory go.
        *lock(&self.shared.guest) = Guest::Awaited;
        ended
    }

    fn end(&mut self, ended: Result<Ended, OwnerError>) {
        self.ended.get_or_insert(ended);
    }

    fn handle(&mut self, task: Task) {
        match task {
            Task::Terminate | Task::Quit if !self.close_entrance() => self.postponed.push(task),
            Task::Terminate => self.terminate(),
            Task::PressAgain => {
                if let Some(guest) =
                    self.shared.guest().filter(|guest| guest.run_state() == RunState::Running)
                    && let Err(error) = guest.press_power_button()
                {
                    tracing::warn!("powering the guest off: {error}");
                }
            }
            Task::Quit => self.quit("host-qmp-quit"),
            Task::Machine(event) => self.machine_event(event),
            Task::Stayed => self.stayed(),
            Task::Reset { guest } => self.reset(guest),
            Task::Incoming(from) => {
                let origin = match from {
                    IncomingFrom::Unix { cpr, main } => Origin::Listen(cpr, Some(main)),
                    IncomingFrom::Saved(place) => Origin::Saved(place),
                };
                if let Err(error) = self.start_receiving(origin) {
                    tracing::error!("{error}");
                }
            }
            Task::Arrived(arrived) => match *arrived {
                Ok(guest) => self.take_in(guest),
                Err(error) => self.end(Err(error)),
            },
            Task::Depart { ready, departure, terms, watch } => {
                let Some(machine) = self.shared.guest() else { return departure.call_off() };
                if let Some(departure) = self.shared.depart(&machine, ready, departure, terms, watch) {
                    service::main_process(departure.stopover());
                    let error = departure.execute();
                    tracing::error!(
                        "this process cannot execute anything: {error}; the guest stays where it went"
                    );
                    self.leave();
                }
            }
            Task::Return { ready, onward, terms, watch } => {
                let Some(machine) = self.shared.guest() else { return };
                if self.shared.give_back(&machine, ready, onward, terms, watch) {
                    self.leave();
                    release::release(machine);
                }
            }
            Task::GivenAway(report) => {
                self.forget_devices();
                let transferred = report.mode == Mode::CprTransfer;
                if transferred {
                    self.server().release_listeners();
                }
                self.shared.gave_away(report);
                if self.options.early && transferred {
                    // Nobody waits for what it could tell.
                    self.end(Ok(Ended::GivenAway));
                }
            }
        }
    }

    /// The guest and the monitor's clients are another process's: nothing is told to anybody any more.
    fn leave(&mut self) {
        self.forget_devices();
        self.server().abandon();
        self.end(Ok(Ended::GivenAway));
    }

    fn forget_devices(&mut self) {
        for id in self.devices.drain(..) {
            if let Err(error) = self.manager.remove_subscriber(id) {
                tracing::error!("letting go of a device: {error:?}");
            }
        }
    }

    /// Has no guest come in any more, if none is here; `false` where one was claimed that is to be here in a moment.
    fn close_entrance(&self) -> bool {
        self.shared.guest().is_some() || self.shared.entrance.close()
    }

    /// Does what nobody could do while the guest was being handed over: it may have fallen asleep, and it may be to end.
    fn stayed(&mut self) {
        self.machine_event(MachineEvent::Sleep);
        if std::mem::take(&mut self.terminate_due) {
            self.terminate();
        }
    }

    fn terminate(&mut self) {
        match self.shared.guest() {
            Some(guest) if !self.terminating && !self.terminate_due => {
                if guest.run_state() == RunState::FinishMigrate {
                    tracing::info!(
                        "the guest is being handed over: should it stay, it is asked to power off; a second signal ends it at once"
                    );
                    self.terminate_due = true;
                    return;
                }
                self.terminating = true;
                let slept = guest.run_state() == RunState::Suspended;
                match self.shared.press_power_button(&guest) {
                    Ok(()) => {
                        tracing::info!("asked the guest to power off; a second signal ends it at once");
                        if slept {
                            self.press_again();
                        }
                    }
                    // It would be started from its beginning.
                    Err(MachineError::Vector(_)) => self.quit("host-signal"),
                    Err(error) => {
                        tracing::warn!("powering the guest off: {error}; a second signal ends it at once");
                    }
                }
            }
            _ => self.quit("host-signal"),
        }
    }

    /// Presses the power button again in a while: a kernel on its way back from sleep takes the press that woke it for no more than that.
    fn press_again(&self) {
        const AFTER: [u64; 3] = [5, 10, 20];
        let inbox = Arc::clone(&self.shared.inbox);
        std::thread::spawn(move || {
            for seconds in AFTER {
                std::thread::sleep(Duration::from_secs(seconds));
                inbox.post(Task::PressAgain);
            }
        });
    }

    fn quit(&mut self, reason: &'static str) {
        let ended = match &*lock(&self.shared.guest) {
            Guest::Awaited => Err(OwnerError::NoGuest),
            Guest::Here(_) => Ok(Ended::GuestEnded),
            Guest::Gone { .. } => Ok(Ended::GivenAway),
        };
        self.shared.events.emit(Event::Shutdown { guest: false, reason });
        self.end(ended);
    }

    fn machine_event(&mut self, event: MachineEvent) {
        let Some(machine) = self.shared.guest() else {
            if matches!(*lock(&self.shared.guest), Guest::Awaited) {
                // A guest that was just claimed runs already.
                self.postponed.push(Task::Machine(event));
            }
            return;
        };
        match event {
            MachineEvent::PowerOff => {
                if !machine.end(RunState::Shutdown) {
                    return;
                }
                tracing::info!("the guest powered off");
                self.shared.events.emit(Event::Shutdown { guest: true, reason: "guest-shutdown" });
                self.end(Ok(Ended::GuestEnded));
            }
            MachineEvent::Sleep => match machine.suspend() {
                Ok(true) => {
                    self.shared.events.emit(Event::Suspend);
                    self.wake_if_wanted(&machine);
                }
                Ok(false) => {}
                Err(error) => tracing::error!("suspending the guest: {error}"),
            },
            MachineEvent::Wake => self.wake_if_wanted(&machine),
            MachineEvent::Reset => self.reset(true),
            MachineEvent::Failed { vcpu, why } => {
                self.stop_for_good(&machine, &format!("vCPU {vcpu} cannot go on: {why}"));
            }
            MachineEvent::Assigned(Notice::Failed(_)) if machine.run_state() == RunState::InternalError => {}
            MachineEvent::Assigned(Notice::Failed(device)) => {
                let why =
                    "has failed, and what it does with the guest's memory is not known: the guest is stopped";
                self.stop_for_good(&machine, &format!("{device} {why}"));
            }
            MachineEvent::Assigned(Notice::Wanted(device)) => {
                tracing::warn!(
                    "the host wants {device} back, and waits until the guest ends (system_powerdown) or resets itself, which \
                     ends it, too: it does not get the device again"
                );
                self.shared.events.emit(Event::DeviceWanted { device });
            }
        }
    }

    fn wake_if_wanted(&self, machine: &Machine) {
        if let Err(error) = self.shared.wake_if_wanted(machine) {
            tracing::error!("waking the guest: {error}");
        }
    }

    fn stop_for_good(&self, machine: &Machine, why: &str) {
        tracing::error!("{why}");
        if machine.end(RunState::InternalError) {
            self.shared.events.emit(Event::Stop);
        }
    }

    /// Starts the guest from its beginning, with its serial port's descriptors kept.
    fn reset(&mut self, guest: bool) {
        let Some(machine) = self.shared.guest() else { return };
        if self.ended.is_some() || !machine.end(RunState::Shutdown) {
            return;
        }
        self.forget_devices();
        let config = machine.config().clone();
        if config.devices.iter().any(DeviceConfig::is_assigned) {
            // Whoever prepares for the guest has its devices open, which are wanted here.
            self.shared.cancel_handover();
        }
        let kept = machine.descriptors(Mode::CprExec);
        machine.devices().hand_over();
        // Whoever still looks at the old machine must not keep its RAM from the new one.
        if let Some(Err(error)) = machine.ram_block().map(crate::memory::RamBlock::release_lock) {
            tracing::warn!("{error}");
        }
        drop(machine);
        *lock(&self.shared.guest) = Guest::Awaited;
        let booted = kept.and_then(|kept| Machine::reboot(config, kept, self.shared.machine_events()));
        match booted {
            Ok(loaded) => {
                self.settle(loaded.enter(Claim::cold_boot(), &mut Stopwatch::start()));
                let reason = if guest { "guest-reset" } else { "host-qmp-system-reset" };
                self.shared.events.emit(Event::Reset { guest, reason });
            }
            Err(error) => self.end(Err(error.into())),
        }
    }
}
