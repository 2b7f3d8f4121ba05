//! The clock in the event loop.

use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};

use super::Rtc;

/// What goes in the event manager for the clock.
#[derive(Debug)]
pub struct RtcSubscriber(pub(super) Arc<Rtc>);

impl MutEventSubscriber for RtcSubscriber {
    fn init(&mut self, ops: &mut EventOps) {
        self.0.watch(ops);
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        self.0.expired();
    }
}
