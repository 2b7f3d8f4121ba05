//! The two ways of an exec: to the stopover, and from there to the new image.
//!
//! 1. Both end on the main thread, which serves the monitor: its clients board just before the stop, and whoever gave the
//!    guest away tells them nothing more.
//! 2. A stopover offers its guest at each of its sockets in turn, and keeps it where nobody takes it.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::incoming::Onward;
use super::{Guest, Shared, Task, lock, service};
use crate::cpr::Mode;
use crate::cpr::error::{HandoverError, InPhase, Whereabouts};
use crate::cpr::exec::depart::Departure;
use crate::cpr::exec::state::Journey;
use crate::cpr::fds::FdTable;
use crate::cpr::format::StateWriter;
use crate::cpr::report::{Phase, Stopwatch};
use crate::cpr::transfer::channel::Channel;
use crate::cpr::transfer::source::{self, ReadyTarget, Terms};
use crate::machine::Machine;
use crate::machine::run_state::RunState;
use crate::monitor::MigrationStatus;

impl Shared {
    /// Gives the guest to the stopover. If that fails the guest is here, and whoever asked is told.
    pub(super) fn depart(
        &self,
        guest: &Machine,
        ready: ReadyTarget,
        departure: Departure,
        terms: Terms,
        watch: Stopwatch,
    ) -> Option<Departure> {
        let journey = Journey {
            started_ns: watch.started_ns(),
            downtime_us: (guest.run_state() == RunState::Running).then_some(0),
            phases: Vec::new(),
            stopover: departure.stopover(),
            settings: self.settings(),
        };
        match self.pass_on(guest, ready, &journey, terms, watch) {
            Ok(()) => Some(departure),
            Err(error) => {
                departure.call_off();
                self.failed(Mode::CprExec, &error);
                None
            }
        }
    }

    /// Begins to offer the guest of a stopover.
    pub(super) fn begin_return(&self, onward: Onward) {
        // Nobody can cancel this any more; that it is under way shows.
        let cancel = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).map(Into::into);
        let mut handover = self.handover();
        handover.info.status = MigrationStatus::Active;
        handover.cancel = cancel.inspect_err(|error| tracing::warn!("making an eventfd: {error}")).ok();
        drop(handover);
        self.go_on(onward, None);
    }

    /// Offers the guest at the next of the sockets, or keeps it.
    fn go_on(&self, mut onward: Onward, mut failed: Option<HandoverError>) {
        let Some((me, guest)) = self.me.upgrade().zip(self.guest()) else { return };
        let offer = move || {
            while !onward.channels.is_empty() {
                let channel = UnixStream::from(onward.channels.remove(0));
                let mut watch = Stopwatch::start();
                let terms = Terms { mode: Mode::CprExec, probe: false, limits: me.limits() };
                let ready = Channel::new(channel, None).in_phase(Phase::Connect).and_then(|channel| {
                    let aboard = &mut |_: &mut _, _: &mut _| Ok(());
                    source::prepare(&guest, channel, None, terms, aboard, &|_: Phase| {}, &mut watch)
                });
                match ready {
                    Ok(ready) => return me.inbox.post(Task::Return { ready, onward, terms, watch }),
                    Err(error) => failed = Some(failed.take().unwrap_or(error)),
                }
            }
            me.keep(failed);
        };
        if let Err(error) = std::thread::Builder::new().name("handover".into()).spawn(offer) {
            self.keep(Some(HandoverError::new(Phase::Connect, error)));
        }
    }

    /// Gives the guest to the image that came for it. False if that failed: the guest is here.
    pub(super) fn give_back(
        &self,
        guest: &Arc<Machine>,
        ready: ReadyTarget,
        onward: Onward,
        terms: Terms,
        watch: Stopwatch,
    ) -> bool {
        let given = self.pass_on(guest, ready, &onward.journey, terms, watch);
        match given {
            Ok(()) => true,
            Err(error) => {
                guest.release_hold();
                self.go_on(onward, Some(error));
                false
            }
        }
    }

    fn pass_on(
        &self,
        guest: &Machine,
        ready: ReadyTarget,
        journey: &Journey,
        terms: Terms,
        watch: Stopwatch,
    ) -> Result<(), HandoverError> {
        let mut board = |writer: &mut StateWriter, fds: &mut FdTable| {
            let journey = Journey { settings: self.settings(), ..journey.clone() };
            writer.put(0, &journey).in_phase(Phase::Prepare)?;
            self.board(true, writer, fds)
        };
        source::hand_over(guest, ready, terms, Some(&mut board), &|_: Phase| {}, watch)?;
        guest.devices().hand_over();
        let gone =
            Guest::Gone { name: guest.config().name.clone(), uuid: guest.config().uuid, mode: Mode::CprExec };
        *lock(&self.guest) = gone;
        Ok(())
    }

    /// Nobody took the guest of this stopover: it stays.
    fn keep(&self, failed: Option<HandoverError>) {
        if let Some(guest) = self.guest() {
            service::ready(&guest.config().name, guest.run_state());
        }
        let why = failed.map_or_else(|| "nobody came for the guest".to_owned(), |error| error.why);
        let stays = HandoverError {
            guest: Whereabouts::Stopover(std::process::id()),
            ..HandoverError::new(Phase::Handover, format!("the new image did not take the guest: {why}"))
        };
        self.failed(Mode::CprExec, &stays);
    }
}
