//! The monitor's commands, carried out.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use super::{Guest, Shared, Task, agent, lock};
use crate::config::Uuid;
use crate::cpr::blockers::Blocker;
use crate::machine::run_state::RunState;
use crate::machine::{Machine, MachineError};
use crate::monitor::events::Event;
use crate::monitor::{
    CheckRequest, CommandError, Control, CpuInfoFast, Destination, EarlyInfo, HandoverReport, Incoming,
    MigrateCapabilities, MigrateParameters, MigrateParametersUpdate, MigrationInfo, RamProgress,
};

impl Control for Shared {
    fn name(&self) -> String {
        self.identity().map_or_else(String::new, |(name, _)| name)
    }

    fn is_taking_in(&self) -> bool {
        self.entrance.is_under_way()
    }

    fn uuid(&self) -> Uuid {
        self.identity().map_or(Uuid([0; 16]), |(_, uuid)| uuid)
    }

    fn run_state(&self) -> RunState {
        match &*lock(&self.guest) {
            Guest::Awaited => RunState::Inmigrate,
            Guest::Here(machine) => machine.run_state(),
            Guest::Gone { .. } => RunState::Postmigrate,
        }
    }

    fn cpus(&self) -> Vec<CpuInfoFast> {
        let threads = self.guest().map(|guest| guest.vcpu_threads()).unwrap_or_default();
        threads
            .into_iter()
            .enumerate()
            .map(|(index, thread_id)| CpuInfoFast { cpu_index: index as u32, thread_id })
            .collect()
    }

    fn stop(&self) -> Result<(), CommandError> {
        if self.needs_guest()?.stop().map_err(generic)? {
            self.events.emit(Event::Stop);
        }
        Ok(())
    }

    fn cont(&self) -> Result<(), CommandError> {
        if self.needs_guest()?.cont().map_err(generic)? {
            self.events.emit(Event::Resume);
        }
        Ok(())
    }

    fn system_wakeup(&self) -> Result<(), CommandError> {
        let guest = self.needs_guest()?;
        if guest.run_state() != RunState::Suspended {
            return Err(CommandError::generic("Unable to wake up: guest is not in suspended state"));
        }
        self.wake(&guest).map_err(generic)
    }

    fn stay_awake(&self, time: Duration) -> Result<(), CommandError> {
        let guest = self.needs_guest()?;
        self.awake.set(time);
        self.wake_if_wanted(&guest).map_err(generic)
    }

    fn system_powerdown(&self) -> Result<(), CommandError> {
        let guest = self.needs_guest()?;
        self.press_power_button(&guest).map_err(generic)?;
        self.events.emit(Event::Powerdown);
        Ok(())
    }

    fn system_reset(&self) -> Result<(), CommandError> {
        self.needs_guest()?.may_reset().map_err(generic)?;
        if self.handover().cancel.is_some() {
            return Err(CommandError::generic("a handover is under way; migrate_cancel ends it"));
        }
        self.inbox.post(Task::Reset { guest: false });
        Ok(())
    }

    fn balloon(&self, bytes: u64) -> Result<(), CommandError> {
        self.needs_guest()?.balloon(bytes).map_err(generic)
    }

    fn balloon_actual(&self) -> Result<u64, CommandError> {
        self.needs_guest()?.balloon_actual().map_err(generic)
    }

    fn quit(&self) -> Result<(), CommandError> {
        self.inbox.post(Task::Quit);
        Ok(())
    }

    fn migration(&self) -> MigrationInfo {
        let (mut info, under_way) = {
            let handover = self.handover();
            (handover.info.clone(), handover.cancel.is_some())
        };
        let mode = self.parameters().mode.filter(|_| !under_way);
        let outstanding = self.guest().and_then(|guest| guest.ram_outstanding());
        info.ram = info.ram.or(outstanding.map(|(here, total)| RamProgress::of(here, total)));
        if let (Some(guest), Some(mode)) = (self.guest(), mode) {
            info.blocked_reasons =
                guest.blockers(mode, self.ram_fate(), false).iter().map(ToString::to_string).collect();
        }
        info
    }

    fn migrate_parameters(&self) -> MigrateParameters {
        self.parameters().clone()
    }

    fn migrate_set_parameters(&self, update: MigrateParametersUpdate) -> Result<(), CommandError> {
        self.parameters().apply(update);
        Ok(())
    }

    fn migrate_capabilities(&self) -> MigrateCapabilities {
        *self.capabilities()
    }

    fn migrate_set_capabilities(&self, capabilities: MigrateCapabilities) -> Result<(), CommandError> {
        *self.capabilities() = capabilities;
        Ok(())
    }

    fn migrate(&self, destination: Destination, wake: bool) -> Result<(), CommandError> {
        self.start_handover(destination, wake)
    }

    fn migrate_incoming(&self, from: Incoming) -> Result<(), CommandError> {
        if self.guest().is_some() {
            return Err(CommandError::generic("there is a guest here already: another cannot come in"));
        }
        if self.awaits.swap(true, SeqCst) {
            return Err(CommandError::generic(
                "a guest is awaited already, or came in once: start another process for another",
            ));
        }
        self.inbox.post(Task::Incoming(from));
        Ok(())
    }

    fn migrate_cancel(&self) -> Result<(), CommandError> {
        self.cancel_handover();
        Ok(())
    }

    fn check(&self, request: &CheckRequest) -> Result<Vec<Blocker>, CommandError> {
        let guest = self.needs_guest()?;
        Ok(self.blockers(&guest, request))
    }

    fn agent(&self) -> Result<PathBuf, CommandError> {
        agent::socket(self.needs_guest()?.config()).map_err(CommandError::generic)
    }

    fn report(&self) -> Option<HandoverReport> {
        self.handover().report.clone()
    }

    fn early(&self) -> Option<EarlyInfo> {
        Self::early(self)
    }
}

impl Shared {
    pub(super) fn needs_guest(&self) -> Result<Arc<Machine>, CommandError> {
        match &*lock(&self.guest) {
            Guest::Here(machine) => Ok(Arc::clone(machine)),
            Guest::Awaited => Err(CommandError::generic("no guest has come in yet")),
            Guest::Gone { name, mode, .. } => Err(CommandError::generic(format!(
                "guest '{name}' was given away by {mode}: it never runs here again"
            ))),
        }
    }

    /// Presses the power button, which wakes a guest that sleeps.
    pub(super) fn press_power_button(&self, guest: &Machine) -> Result<(), MachineError> {
        guest.press_power_button()?;
        if guest.run_state() == RunState::Suspended { self.wake(guest) } else { Ok(()) }
    }

    /// Wakes a guest that sleeps. One that has set no place to go on at is started from its beginning.
    pub(super) fn wake(&self, guest: &Machine) -> Result<(), MachineError> {
        match guest.wake() {
            Ok(()) => self.events.emit(Event::Wakeup),
            Err(error @ MachineError::Vector(_)) => {
                tracing::error!("{error}: it is started from its beginning");
                self.inbox.post(Task::Reset { guest: true });
                return Err(error);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Wakes a guest that sleeps although it is to be awake, once; or that an event is to wake.
    pub(super) fn wake_if_wanted(&self, guest: &Machine) -> Result<(), MachineError> {
        if guest.run_state() != RunState::Suspended {
            return Ok(());
        }
        if let Some(event) = guest.wake_event() {
            tracing::info!("the guest is woken by {event}");
        } else if !self.awake.is_wanted() {
            return Ok(());
        }
        self.wake(guest)?;
        self.awake.set(Duration::ZERO);
        Ok(())
    }

    /// Name and identity of the guest that is or was here.
    fn identity(&self) -> Option<(String, Uuid)> {
        match &*lock(&self.guest) {
            Guest::Awaited => None,
            Guest::Here(machine) => Some((machine.config().name.clone(), machine.config().uuid)),
            Guest::Gone { name, uuid, .. } => Some((name.clone(), *uuid)),
        }
    }
}

/// An error of the machine as one of the monitor's.
pub(super) fn generic(error: impl std::fmt::Display) -> CommandError {
    CommandError::generic(error.to_string())
}
