//! News for the clients: any thread emits, the monitor's thread sends.
//!
//! 1. Emitting never blocks and never fails; the queue is bounded, and what does not fit is dropped, oldest first.
//! 2. Events reach clients in the order in which they were emitted.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::types::MigrationStatus;
use crate::cpr::Mode;

const MAX_QUEUED: usize = 1024;

/// What clients are told without having asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The vCPUs stopped.
    Stop,
    /// The vCPUs go on.
    Resume,
    /// The guest entered ACPI S3.
    Suspend,
    /// The guest woke up.
    Wakeup,
    /// The power button was pressed.
    Powerdown,
    /// The machine was reset.
    Reset {
        /// Whether the guest asked for it.
        guest: bool,
        /// QEMU's `ShutdownCause` (`guest-reset`, `host-qmp-system-reset`).
        reason: &'static str,
    },
    /// The machine was powered off, or its process ends.
    Shutdown {
        /// Whether the guest asked for it.
        guest: bool,
        /// QEMU's `ShutdownCause` (`guest-shutdown`, `host-qmp-quit`, `host-signal`).
        reason: &'static str,
    },
    /// The host wants an assigned device back.
    DeviceWanted {
        /// Its id.
        device: String,
    },
    /// A handover has a new status. Sent only with the `events` capability.
    Migration(MigrationStatus),
    /// A handover entered a phase. Sent only with the `events` capability.
    Phase {
        /// The handover's mode.
        mode: Mode,
        /// The phase's name.
        phase: String,
        /// Microseconds since the handover began.
        elapsed_us: u64,
    },
}

impl Event {
    /// Whether the `events` capability must be set for it.
    pub(super) fn needs_capability(&self) -> bool {
        matches!(self, Self::Migration(_) | Self::Phase { .. })
    }

    fn parts(&self) -> (&'static str, Option<Value>) {
        match self {
            Self::Stop => ("STOP", None),
            Self::Resume => ("RESUME", None),
            Self::Suspend => ("SUSPEND", None),
            Self::Wakeup => ("WAKEUP", None),
            Self::Powerdown => ("POWERDOWN", None),
            Self::Reset { guest, reason } => ("RESET", Some(json!({"guest": guest, "reason": reason}))),
            Self::Shutdown { guest, reason } => ("SHUTDOWN", Some(json!({"guest": guest, "reason": reason}))),
            Self::DeviceWanted { device } => ("X_CPR_DEVICE_WANTED", Some(json!({"device": device}))),
            Self::Migration(status) => ("MIGRATION", Some(json!({"status": status}))),
            Self::Phase { mode, phase, elapsed_us } => {
                ("X_CPR_PHASE", Some(json!({"mode": mode, "phase": phase, "elapsed-us": elapsed_us})))
            }
        }
    }

    /// The event as QMP writes it; `at` is the wall clock's time since 1970.
    pub(super) fn to_json(&self, at: SystemTime) -> Value {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (name, data) = self.parts();
        let mut message = json!({
            "event": name,
            "timestamp": {"seconds": since.as_secs(), "microseconds": since.subsec_micros()},
        });
        if let Some(data) = data {
            message["data"] = data;
        }
        message
    }
}

/// A handle by which any thread emits events. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EventSender(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queue: Mutex<VecDeque<(SystemTime, Event)>>,
    ready: EventFd,
}

impl EventSender {
    /// A queue with nobody listening yet; given to [`MonitorServer::new`](super::server::MonitorServer::new).
    pub fn new() -> io::Result<Self> {
        let ready = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Self(Arc::new(Shared { queue: Mutex::default(), ready })))
    }

    /// Queues an event. Never blocks.
    pub fn emit(&self, event: Event) {
        {
            let mut queue = self.0.queue.lock().unwrap_or_else(PoisonError::into_inner);
            if queue.len() == MAX_QUEUED {
                queue.pop_front();
            }
            queue.push_back((SystemTime::now(), event));
        }
        self.wake();
    }

    /// Makes the monitor's thread look at its server.
    pub fn wake(&self) {
        // Fails only when the counter is full: then it is readable, which is all that is wanted.
        let _ = self.0.ready.write(1);
    }

    pub(super) fn ready(&self) -> &EventFd {
        &self.0.ready
    }

    pub(super) fn drain(&self) -> VecDeque<(SystemTime, Event)> {
        // Not readable is no news: the queue is looked at anyway.
        let _ = self.0.ready.read();
        std::mem::take(&mut *self.0.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
