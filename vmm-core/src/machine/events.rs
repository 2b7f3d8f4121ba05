//! What a machine tells the process that owns it.

use std::sync::Arc;

use crate::devices::{GuestRequest, RequestSink};

/// Something that happened in the guest and that its owner must act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineEvent {
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
}

/// Where a machine sends its events. Called on vCPU threads: must not wait for them to stop.
pub type EventSink = Arc<dyn Fn(MachineEvent) + Send + Sync>;

/// Turns what devices ask for into events.
pub(super) fn request_sink(events: &EventSink) -> RequestSink {
    let events = Arc::clone(events);
    Arc::new(move |request| {
        events(match request {
            GuestRequest::PowerOff => MachineEvent::PowerOff,
            GuestRequest::Reset => MachineEvent::Reset,
        });
    })
}
