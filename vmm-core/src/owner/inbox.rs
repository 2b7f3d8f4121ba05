//! What other threads ask of the main thread.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, PoisonError};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use std::sync::Arc;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// A queue that wakes the main thread.
#[derive(Debug)]
pub struct Inbox<T> {
    queue: Mutex<VecDeque<T>>,
    wake: EventFd,
}

impl<T> Inbox<T> {
    /// An empty inbox.
    pub fn new() -> io::Result<Self> {
        Ok(Self { queue: Mutex::default(), wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)? })
    }

    /// Leaves something for the main thread. Never blocks.
    pub fn post(&self, item: T) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(item);
        if let Err(error) = self.wake.write(1) {
            tracing::error!("waking the main thread: {error}");
        }
    }

    /// Takes the next thing out.
    pub fn take(&self) -> Option<T> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

/// Makes the event loop return when something was posted; what it is, is looked at outside of the loop.
pub struct InboxWaker<T>(pub Arc<Inbox<T>>);

impl<T> MutEventSubscriber for InboxWaker<T> {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        // Reading it re-arms it; that there was nothing to read is no news.
        let _ = self.0.wake.read();
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.0.wake, EventSet::IN)) {
            tracing::error!("watching the main thread's inbox: {error}");
        }
    }
}
