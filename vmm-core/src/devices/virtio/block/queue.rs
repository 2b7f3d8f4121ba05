//! A thread for one queue.
//!
//! 1. It takes what is available, gets it under way, and answers what is done, in turns; nothing else of the device waits
//!    for it.
//! 2. A stop has two steps, so that a disk with several queues stops whole or not at all: all drain, then all give back.
//! 3. A driver that breaks the rules gets no answer any more until it resets; what was begun ends all the same.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::device::QUEUE_SIZE;
use super::engine::{Completion, Engine, Undrained};
use super::request::{Action, Limits, Reply, Request, Status};
use crate::devices::virtio::{ActiveQueue, RingError};
use crate::devices::{DeviceError, eventfd};

/// A queue, and what its requests are held against.
pub(super) struct Work {
    pub(super) queue: ActiveQueue,
    pub(super) memory: Arc<GuestMemoryMmap>,
    pub(super) limits: Limits,
}

impl Work {
    /// Takes what the driver has made available, as far as there is room under way; whether there was something.
    fn begin(
        &mut self,
        memory: &Arc<GuestMemoryMmap>,
        engine: &mut dyn Engine,
        replies: &mut Replies,
    ) -> Result<bool, RingError> {
        let mut some = false;
        while engine.in_flight() < usize::from(QUEUE_SIZE)
            && let Some(chain) = self.queue.pop(memory)?
        {
            some = true;
            let broken = |error| self.queue.broken(error);
            let request = Request::parse(chain, memory, &self.limits).map_err(broken)?;
            match request.action {
                Action::Submit(operation) => engine.submit(replies.put(request.reply), operation),
                Action::Answer(status, written) => {
                    let used = request.reply.finish(memory, status, written).map_err(broken)?;
                    self.queue.push(memory, request.reply.head, used)?;
                }
            }
        }
        Ok(some)
    }
}

enum Command {
    /// Serve this queue.
    Start(Box<Work>),
    /// Take nothing more, and wait for what is under way.
    Drain(Instant, Sender<Result<(), Undrained>>),
    /// Go on as if nothing had been asked.
    GoOn,
    /// Give the queue back.
    GiveBack(Sender<Option<ActiveQueue>>),
}

/// A thread for one queue, with an engine of its own.
pub(super) struct QueueThread {
    commands: Option<Sender<Command>>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl QueueThread {
    /// Starts it, with nothing to do.
    pub(super) fn spawn(id: &str, engine: Box<dyn Engine>) -> Result<Self, DeviceError> {
        let wake = Arc::new(eventfd::make(id)?);
        let (commands, received) = channel();
        let served =
            Served { id: id.to_owned(), engine, work: None, draining: false, replies: Replies::default() };
        let thread = std::thread::Builder::new().name(id.chars().take(15).collect()).spawn({
            let wake = Arc::clone(&wake);
            move || served.run(&received, &wake)
        });
        let thread = Some(thread.map_err(DeviceError::io(id, "starting its thread"))?);
        Ok(Self { commands: Some(commands), wake, thread })
    }

    fn send(&self, command: Command) {
        // An error means that the thread is gone, which the answer that does not come tells.
        let _ = self.commands.as_ref().map(|commands| commands.send(command));
        // It can only fail when the counter is full, and then the thread is awake.
        let _ = self.wake.write(1);
    }

    pub(super) fn start(&self, work: Work) {
        self.send(Command::Start(Box::new(work)));
    }

    /// Has it drain; the answer comes by the deadline.
    pub(super) fn drain(&self, deadline: Instant) -> Receiver<Result<(), Undrained>> {
        let (answer, answered) = channel();
        self.send(Command::Drain(deadline, answer));
        answered
    }

    pub(super) fn go_on(&self) {
        self.send(Command::GoOn);
    }

    /// Takes the queue back from a thread that has drained.
    pub(super) fn give_back(&self) -> Option<ActiveQueue> {
        let (answer, answered) = channel();
        self.send(Command::GiveBack(answer));
        answered.recv().ok().flatten()
    }
}

impl Drop for QueueThread {
    fn drop(&mut self) {
        self.commands = None;
        let _ = self.wake.write(1);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of a disk's queue panicked");
        }
    }
}

/// Where the answers to requests under way go, by their tokens.
#[derive(Default)]
struct Replies {
    slots: Vec<Option<Reply>>,
    free: Vec<usize>,
}

impl Replies {
    fn put(&mut self, reply: Reply) -> u64 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(reply);
        slot as u64
    }

    fn take(&mut self, token: u64) -> Option<Reply> {
        let slot = usize::try_from(token).ok()?;
        let reply = self.slots.get_mut(slot)?.take()?;
        self.free.push(slot);
        Some(reply)
    }
}

/// What the thread has.
struct Served {
    id: String,
    engine: Box<dyn Engine>,
    work: Option<Box<Work>>,
    draining: bool,
    replies: Replies,
}

impl Served {
    fn run(mut self, commands: &Receiver<Command>, wake: &EventFd) {
        loop {
            let rung = match self.wait(wake) {
                Ok(rung) => rung,
                Err(error) => {
                    tracing::error!("{}: waiting for its queue: {error}", self.id);
                    return;
                }
            };
            loop {
                match commands.try_recv() {
                    Ok(command) => self.obey(command),
                    Err(std::sync::mpsc::TryRecvError::Empty) => break,
                    // The device is gone.
                    Err(std::sync::mpsc::TryRecvError::Disconnected) => return,
                }
            }
            self.serve(rung);
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Start(work) => (self.work, self.draining) = (Some(work), false),
            Command::Drain(deadline, answer) => {
                self.draining = true;
                let mut done = Vec::new();
                let drained = self.engine.drain(deadline, &mut done);
                self.settle(done);
                // Whoever asked is gone if it cannot be told.
                let _ = answer.send(drained);
            }
            Command::GoOn => self.draining = false,
            Command::GiveBack(answer) => {
                let _ = answer.send(self.work.take().map(|work| work.queue));
            }
        }
    }

    /// Waits for a command, a notification, or something that is done; says whether it is the last. Only what has rung is
    /// read: a system call each, in the way of every request.
    fn wait(&mut self, wake: &EventFd) -> nix::Result<bool> {
        let kick = self.work.as_ref().filter(|_| !self.draining).map(|work| Arc::clone(&work.queue.kick));
        let event = (self.engine.in_flight() > 0).then(|| self.engine.event());
        let heard = [Some(wake), kick.as_deref(), event];
        let mut fds: Vec<_> = heard
            .iter()
            .flatten()
            .map(|eventfd| PollFd::new(eventfd::borrow(eventfd), PollFlags::POLLIN))
            .collect();
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
        let mut rung = fds.iter().map(|fd| fd.any().unwrap_or(true));
        let [wake_rung, kick_rung, event_rung] =
            heard.map(|eventfd| eventfd.is_some() && rung.next().unwrap_or(true));
        // Nothing to read is fine: another thread rings, and a reset reads.
        if wake_rung {
            let _ = wake.read();
        }
        if let Some(kick) = kick.filter(|_| kick_rung) {
            let _ = kick.read();
        }
        Ok(event_rung)
    }

    /// Answers what is done and begins what is new, until there is neither. `rung`: the engine's event has.
    fn serve(&mut self, mut rung: bool) {
        loop {
            let mut done = Vec::new();
            if std::mem::take(&mut rung) || self.engine.has_done() {
                self.engine.reap(&mut done);
            }
            let answered = !done.is_empty();
            self.settle(done);
            let begun = self.begin().unwrap_or_else(|error| self.give_up(&error));
            if !answered && !begun {
                return;
            }
        }
    }

    /// Begins what the driver has made available. False where there is nothing, or nothing is to be begun.
    fn begin(&mut self) -> Result<bool, RingError> {
        let Some(work) = &mut self.work else { return Ok(false) };
        if self.draining || work.queue.interrupt.is_reset_needed() {
            return Ok(false);
        }
        let memory = Arc::clone(&work.memory);
        let begun = work.begin(&memory, &mut *self.engine, &mut self.replies);
        // Also what came before a chain that is broken.
        self.engine.kick();
        let told = work.queue.notify(&memory);
        let some = begun?;
        told?;
        let full = self.engine.in_flight() >= usize::from(QUEUE_SIZE);
        Ok(some || (work.queue.listen(&memory)? && !full))
    }

    /// Gives the answers to what is done.
    fn settle(&mut self, done: Vec<Completion>) {
        if let Err(error) = self.answer(done) {
            self.give_up(&error);
        }
    }

    fn answer(&mut self, done: Vec<Completion>) -> Result<(), RingError> {
        let Some(work) = &mut self.work else { return Ok(()) };
        let mut wrong = None;
        for Completion { token, result } in done {
            let Some(reply) = self.replies.take(token) else { continue };
            let (status, written) = match &result {
                Ok(()) => (Status::Ok, reply.data),
                Err(error) => {
                    tracing::warn!("{}: a request failed: {error}", self.id);
                    (Status::IoError, 0)
                }
            };
            let used = reply.finish(&work.memory, status, written).map_err(|error| work.queue.broken(error));
            // One answer that cannot be given must not keep the others back.
            let given = used.and_then(|used| work.queue.push(&work.memory, reply.head, used));
            wrong = wrong.or(given.err());
        }
        let told = work.queue.notify(&work.memory);
        wrong.map_or(told, Err)
    }

    /// The driver has broken the rules.
    fn give_up(&mut self, error: &RingError) -> bool {
        if let Some(work) = &self.work {
            tracing::warn!("{}: {error}; the disk stands still until its driver resets it", self.id);
            work.queue.interrupt.needs_reset();
        }
        false
    }
}
