//! I/O by a pool of threads.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use super::job::{Job, Pending};
use super::operation::Operation;
use super::{Completion, Engine, blocking};
use crate::devices::eventfd;
use crate::devices::virtio::block::image::Backing;

/// The most threads of one pool: the most requests that the host's disk sees at a time.
const THREADS: usize = 16;

/// What a thread needs beyond a few system calls' frames.
const STACK: usize = 128 << 10;

/// Threads that do one request each, made when there is work for one more.
#[derive(Debug)]
pub(super) struct Pool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    backing: Backing,
    state: Mutex<State>,
    work: Condvar,
    event: EventFd,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<(u64, Job)>,
    done: Vec<(u64, io::Result<()>)>,
    threads: usize,
    idle: usize,
    closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a thread does.
    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some((id, mut job)) = state.queue.pop_front() {
                drop(state);
                let result = blocking::run(&self.backing, &mut job);
                // Before the answer: whoever sees it may count on the buffers being let go.
                drop(job);
                state = self.lock();
                state.done.push((id, result));
                // Only fails when the counter is full, and then it is readable anyway.
                let _ = self.event.write(1);
            } else if state.closed {
                return;
            } else {
                state.idle += 1;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }
}

impl Pool {
    /// A pool without threads yet, that rings `event` for what is done.
    pub(super) fn new(backing: Backing, event: EventFd) -> Self {
        Self(Arc::new(Shared { backing, state: Mutex::default(), work: Condvar::new(), event }))
    }

    /// Gets a job done. Without a thread to do it, it has failed.
    pub(super) fn submit(&self, id: u64, job: Job) {
        let mut state = self.0.lock();
        state.queue.push_back((id, job));
        if state.idle < state.queue.len() && state.threads < THREADS {
            let shared = self.0.clone();
            let thread = thread::Builder::new().name("block-io".into()).stack_size(STACK);
            match thread.spawn(move || shared.work()) {
                Ok(_) => state.threads += 1,
                Err(e) if state.threads == 0 => {
                    state.queue.clear();
                    state.done.push((id, Err(e)));
                    let _ = self.0.event.write(1);
                }
                Err(_) => {}
            }
        }
        drop(state);
        self.0.work.notify_one();
    }

    /// Whether something is done.
    pub(super) fn has_done(&self) -> bool {
        !self.0.lock().done.is_empty()
    }

    /// Takes what is done.
    pub(super) fn take_done(&self) -> Vec<(u64, io::Result<()>)> {
        std::mem::take(&mut self.0.lock().done)
    }
}

impl Drop for Pool {
    /// What no thread has begun is dropped; what one has begun it ends by itself.
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.closed = true;
        state.queue.clear();
        self.0.work.notify_all();
    }
}

/// I/O by a pool of threads.
#[derive(Debug)]
pub struct ThreadEngine {
    pool: Pool,
    event: EventFd,
    pending: BTreeMap<u64, Pending>,
    next: u64,
}

impl ThreadEngine {
    /// An engine on `backing`. Threads are made when they are needed.
    pub fn new(backing: Backing) -> io::Result<Self> {
        let event = eventfd::open()?;
        let pool = Pool::new(backing, event.try_clone()?);
        Ok(Self { pool, event, pending: BTreeMap::new(), next: 0 })
    }
}

impl Engine for ThreadEngine {
    fn submit(&mut self, token: u64, operation: Operation) {
        self.pending.insert(self.next, Pending::new(token, operation.name(), None));
        let direct = self.pool.0.backing.direct;
        self.pool.submit(self.next, Job::new(operation, direct));
        self.next += 1;
    }

    fn kick(&mut self) {}

    fn reap(&mut self, done: &mut Vec<Completion>) {
        // First the event, then what it told: what comes between the two rings again.
        let _ = self.event.read();
        for (id, result) in self.pool.take_done() {
            if let Some(pending) = self.pending.remove(&id) {
                done.push(Completion { token: pending.token, result });
            }
        }
    }

    fn has_done(&mut self) -> bool {
        self.pool.has_done()
    }

    fn event(&self) -> &EventFd {
        &self.event
    }

    fn in_flight(&self) -> usize {
        self.pending.len()
    }

    fn oldest(&self) -> Option<(&'static str, Instant)> {
        self.pending.first_key_value().map(|(_, pending)| (pending.name, pending.since))
    }
}
