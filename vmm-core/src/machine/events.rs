//! What a machine tells the process that owns it.

use std::sync::Arc;

use crate::devices::vfio::{Notice, Tell};
use crate::devices::{GuestRequest, RequestSink};

/// Something that happened in the guest and that its owner must act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest went to sleep: its vCPUs are to be stopped. Told once until it is woken.
    Sleep,
    /// An event that is to wake the guest is there: it is to be woken, if it sleeps.
    Wake,
    /// The guest powered itself off.
    PowerOff,
    /// The guest asked for a reset, or crashed into one.
    Reset,
    /// KVM cannot go on with a vCPU.
    Failed {
        /// Which one.
        vcpu: usize,
        /// What KVM said.
        why: String,
    },
    /// What the host says of an assigned device.
    Assigned(Notice),
}

impl MachineEvent {
    /// Whether the guest does not go on as it is.
    pub(super) fn ends_the_machine(&self) -> bool {
        !matches!(self, Self::Sleep | Self::Wake | Self::Assigned(Notice::Wanted(_)))
    }
}

/// Where a machine sends its events. Called on vCPU threads: must not wait for them to stop.
pub type EventSink = Arc<dyn Fn(MachineEvent) + Send + Sync>;

/// Turns what devices ask for into events.
pub(super) fn request_sink(events: &EventSink) -> RequestSink {
    let events = Arc::clone(events);
    Arc::new(move |request| {
        events(match request {
            GuestRequest::Sleep => MachineEvent::Sleep,
            GuestRequest::Wake => MachineEvent::Wake,
            GuestRequest::PowerOff => MachineEvent::PowerOff,
            GuestRequest::Reset => MachineEvent::Reset,
        });
    })
}

/// Turns what the host says of assigned devices into events.
pub(super) fn notice_sink(events: &EventSink) -> Tell {
    let events = Arc::clone(events);
    Arc::new(move |notice| events(MachineEvent::Assigned(notice)))
}
