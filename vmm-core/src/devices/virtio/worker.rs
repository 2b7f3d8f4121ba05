//! A thread for a device that answers each request at once.
//!
//! 1. It lives as long as its device, so that starting and stopping cost no more than a wake-up.
//! 2. It holds the queues between start and stop; a stop takes effect between two looks at a queue, each of them bounded.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::device::Run;
use super::queue::{ActiveQueue, RingError};
use crate::devices::{DeviceError, eventfd};

/// What a device does with a queue.
pub trait Handler: Send + 'static {
    /// Takes what is in the queue, answers it, and gives it back. The worker asks for notifications and interrupts.
    /// `Ok(true)` when it stopped early and there may be more.
    fn serve(&mut self, queue: &mut ActiveQueue, memory: &GuestMemoryMmap) -> Result<bool, RingError>;

    /// Whether what the driver makes available in a queue is news. Asked after each look at it.
    fn listens(&self, _queue: u16) -> bool {
        true
    }

    /// What of the host's it waits for, besides the driver's notifications.
    fn waits(&self) -> Vec<Wait<'_>> {
        Vec::new()
    }

    /// Puts chains that it took and has not answered back in a queue. It does not get the queue again before the next start.
    fn put_back(&mut self, _queue: &mut ActiveQueue) {}
}

/// Something of the host's that leads to a look at a queue.
pub struct Wait<'a> {
    /// What is waited on.
    pub fd: BorrowedFd<'a>,
    /// For what.
    pub events: PollFlags,
    /// The queue to look at then.
    pub queue: u16,
}

enum Command {
    Start(Run),
    Stop,
    Quit,
}

#[derive(Default)]
struct Slot {
    command: Option<Command>,
    /// What a stop gives back.
    stopped: Option<Vec<ActiveQueue>>,
}

struct Shared {
    slot: Mutex<Slot>,
    changed: Condvar,
    wake: EventFd,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, command: Command) {
        self.lock().command = Some(command);
        // It can only fail when the counter is full, and then the thread is awake.
        let _ = self.wake.write(1);
    }
}

/// A device's thread.
pub struct Worker {
    id: String,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread of the device `id`, with nothing to do.
    pub fn spawn(id: &str, handler: impl Handler) -> Result<Self, DeviceError> {
        let wake = eventfd::make(id)?;
        let shared = Arc::new(Shared { slot: Mutex::default(), changed: Condvar::new(), wake });
        let thread = std::thread::Builder::new().name(id.chars().take(15).collect()).spawn({
            let (shared, id) = (Arc::clone(&shared), id.to_owned());
            move || work(&id, &shared, handler)
        });
        let thread = thread.map_err(DeviceError::io(id, "starting its thread"))?;
        Ok(Self { id: id.to_owned(), shared, thread: Some(thread) })
    }

    /// The device's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Gives it queues to serve. It must not have any.
    pub fn start(&self, run: Run) {
        self.shared.send(Command::Start(run));
    }

    /// Takes the queues back. [`DeviceError::Busy`] if it is not between two requests by the deadline; it then goes on.
    pub fn stop(&self, deadline: Instant) -> Result<Vec<ActiveQueue>, DeviceError> {
        // A start that it has not come to is undone by the same answer: the thread takes commands in order.
        let mut slot = self.shared.lock();
        while matches!(slot.command, Some(Command::Start(_))) {
            slot = self.wait(slot, deadline)?;
        }
        slot.command = Some(Command::Stop);
        drop(slot);
        let _ = self.shared.wake.write(1);
        let mut slot = self.shared.lock();
        loop {
            if let Some(queues) = slot.stopped.take() {
                return Ok(queues);
            }
            slot = self.wait(slot, deadline)?;
        }
    }

    fn wait<'a>(
        &self,
        slot: MutexGuard<'a, Slot>,
        deadline: Instant,
    ) -> Result<MutexGuard<'a, Slot>, DeviceError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let (mut slot, waited) =
            self.shared.changed.wait_timeout(slot, left).unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() && slot.stopped.is_none() {
            // Not asked, unless the thread has seen it already: then it is about to answer, and the next stop hears it.
            slot.command.take_if(|command| matches!(command, Command::Stop));
            return Err(DeviceError::Busy { device: self.id.clone(), what: "a request is in work".into() });
        }
        Ok(slot)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.send(Command::Quit);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of {} panicked", self.id);
        }
    }
}

fn work(id: &str, shared: &Shared, mut handler: impl Handler) {
    let mut run: Option<Run> = None;
    loop {
        let ready = match wait(shared, &handler, run.as_ref()) {
            Ok(ready) => ready,
            Err(error) => {
                tracing::error!("{id}: waiting for its queues: {error}");
                return;
            }
        };
        let command = {
            let mut slot = shared.lock();
            // A start leaves the slot when it is done with, so that a stop comes after it.
            let command = slot.command.take();
            if matches!(command, Some(Command::Stop)) {
                let mut queues = run.take().map_or_else(Vec::new, |run| run.queues);
                for queue in &mut queues {
                    handler.put_back(queue);
                }
                slot.stopped = Some(queues);
            }
            if command.is_some() {
                shared.changed.notify_all();
            }
            command
        };
        match command {
            Some(Command::Start(new)) => {
                let run = run.insert(new);
                serve_all(id, &mut handler, run, |_| true);
            }
            Some(Command::Stop) => {}
            Some(Command::Quit) => return,
            None => {
                if let Some(run) = &mut run {
                    serve_all(id, &mut handler, run, |queue| ready.contains(&queue.index));
                }
            }
        }
    }
}

/// Waits for a command, a notification, or what the handler waits for; says which queues the last two lead to. Only what
/// has rung is read: a system call each, in the way of every packet.
fn wait(shared: &Shared, handler: &impl Handler, run: Option<&Run>) -> nix::Result<Vec<u16>> {
    let works = run.is_some_and(|run| !run.queues.iter().any(|queue| queue.interrupt.is_reset_needed()));
    let waits = if works { handler.waits() } else { Vec::new() };
    let queues = run.map_or(&[][..], |run| &run.queues);
    let hosts = waits.iter().map(|wait| PollFd::new(wait.fd, wait.events));
    let kicks = queues.iter().map(|queue| PollFd::new(eventfd::borrow(&queue.kick), PollFlags::POLLIN));
    let wake = PollFd::new(eventfd::borrow(&shared.wake), PollFlags::POLLIN);
    let mut fds: Vec<_> = hosts.chain(kicks).chain([wake]).collect();
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(error) => return Err(error),
    }
    let (hosts, rest) = fds.split_at(waits.len());
    let (kicks, wake) = rest.split_at(queues.len());
    let rung = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
    let waited = waits.iter().zip(hosts).filter(|(_, fd)| rung(fd)).map(|(wait, _)| wait.queue);
    // Nothing to read is fine: a reset reads too.
    let kicked = queues.iter().zip(kicks).filter(|(queue, fd)| rung(fd) && queue.kick.read().is_ok());
    let ready = waited.chain(kicked.map(|(queue, _)| queue.index)).collect();
    if wake.iter().any(rung) {
        let _ = shared.wake.read();
    }
    Ok(ready)
}

/// Looks at the queues that are chosen. A queue that breaks the rules ends the run's work: the driver must reset.
fn serve_all(
    id: &str,
    handler: &mut impl Handler,
    run: &mut Run,
    mut chosen: impl FnMut(&ActiveQueue) -> bool,
) {
    let Run { memory, queues, .. } = run;
    for queue in queues {
        if !chosen(queue) || queue.interrupt.is_reset_needed() {
            continue;
        }
        if let Err(error) = look(handler, queue, memory) {
            tracing::warn!("{id}: {error}; the device stands still until its driver resets it");
            queue.interrupt.needs_reset();
        }
    }
}

/// One bounded look at a queue; what comes in meanwhile is left for the next.
fn look(
    handler: &mut impl Handler,
    queue: &mut ActiveQueue,
    memory: &GuestMemoryMmap,
) -> Result<(), RingError> {
    let more = handler.serve(queue, memory)?;
    queue.notify(memory)?;
    if more || (handler.listens(queue.index) && queue.listen(memory)?) {
        // It can only fail when the counter is full, and then it wakes us all the same.
        let _ = queue.kick.write(1);
    }
    Ok(())
}
