//! The ports' back ends in the event loop.

use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};

use super::device::Shared;

/// What goes in the event manager for a console.
#[derive(Debug)]
pub struct ConsoleSubscriber(pub(super) Arc<Shared>);

impl MutEventSubscriber for ConsoleSubscriber {
    fn init(&mut self, ops: &mut EventOps) {
        self.0.ports.iter().for_each(|port| port.lock().chardev.watch(ops));
    }

    /// Whatever woke it: lets clients come and go, and has the device's thread move what can be moved.
    fn process(&mut self, _events: Events, ops: &mut EventOps) {
        for port in &self.0.ports {
            let mut stream = port.lock();
            if stream.chardev.wake() {
                stream.chardev.service(ops);
                stream.watch_connection();
                drop(stream);
                self.0.wake_port(port);
            }
        }
    }
}
