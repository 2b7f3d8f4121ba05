//! SIGTERM and SIGINT: the first powers the guest off in order, a second one ends the process.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::Task;
use super::inbox::Inbox;

/// The signals, as a descriptor.
pub struct Signals {
    fd: SignalFd,
    inbox: Arc<Inbox<Task>>,
}

impl Signals {
    /// Blocks the signals in this thread, and in every thread it starts from now on. They stay blocked over an exec, so
    /// that one that arrives meanwhile is seen by the new image.
    pub fn block(inbox: Arc<Inbox<Task>>) -> io::Result<Self> {
        let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
        signals.thread_block()?;
        Ok(Self {
            fd: SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?,
            inbox,
        })
    }
}

impl MutEventSubscriber for Signals {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        while let Ok(Some(_)) = self.fd.read_signal() {
            self.inbox.post(Task::Terminate);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new_raw(self.fd.as_raw_fd(), EventSet::IN)) {
            tracing::error!("watching for signals: {error}");
        }
    }
}
