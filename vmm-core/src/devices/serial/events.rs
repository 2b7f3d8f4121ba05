//! The port in the event loop.

use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};

use super::Serial;

/// What goes in the event manager for a port.
#[derive(Debug)]
pub struct SerialSubscriber(pub(super) Arc<Serial>);

impl MutEventSubscriber for SerialSubscriber {
    fn init(&mut self, ops: &mut EventOps) {
        self.0.watch(ops);
    }

    fn process(&mut self, _events: Events, ops: &mut EventOps) {
        self.0.service(ops);
    }
}
