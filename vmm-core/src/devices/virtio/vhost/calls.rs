//! The kernel's calls to the driver: straight to KVM where a queue has an MSI-X vector, whose eventfd knows when it is
//! masked; by way of a thread where it has none.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::device::RINGS;
use super::kernel::Kernel;
use crate::devices::DeviceError;
use crate::devices::eventfd::borrow;
use crate::devices::pci::msi::MsiVector;
use crate::devices::virtio::Interrupt;

/// The thread.
pub(super) struct Calls {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    id: String,
    kernel: Arc<dyn Kernel>,
    /// Signalled by the kernel: something was given back in the ring.
    calls: [EventFd; RINGS],
    /// Signalled by the kernel: a ring is broken.
    broken: EventFd,
    /// Signalled by us: a queue's vector may be another, or the thread is to end.
    wake: EventFd,
    quits: AtomicBool,
    /// Whom to tell: the queue that each ring is.
    to: Mutex<Option<To>>,
}

struct To {
    interrupt: Arc<Interrupt>,
    queues: [u16; RINGS],
    /// What the kernel signals instead of us.
    wires: [Option<Arc<dyn MsiVector>>; RINGS],
}

impl Calls {
    /// Starts the thread of the device `id`, with nobody to tell.
    pub(super) fn start(id: &str, kernel: &Arc<dyn Kernel>) -> Result<Self, DeviceError> {
        let eventfd = || {
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .map_err(DeviceError::io(id, "making an eventfd"))
        };
        let shared = Arc::new(Shared {
            id: id.to_owned(),
            kernel: Arc::clone(kernel),
            calls: [eventfd()?, eventfd()?],
            broken: eventfd()?,
            wake: eventfd()?,
            quits: AtomicBool::new(false),
            to: Mutex::default(),
        });
        let thread = std::thread::Builder::new().name(id.chars().take(15).collect()).spawn({
            let shared = Arc::clone(&shared);
            move || shared.run()
        });
        Ok(Self { shared, thread: Some(thread.map_err(DeviceError::io(id, "starting its thread"))?) })
    }

    /// What the kernel signals when a ring is broken.
    pub(super) fn broken(&self) -> BorrowedFd<'_> {
        self.shared.broken.as_fd()
    }

    /// What the kernel is told to signal for a ring before [`Self::connect`].
    pub(super) fn call(&self, ring: usize) -> BorrowedFd<'_> {
        self.shared.calls[ring].as_fd()
    }

    /// Tells these from now on.
    pub(super) fn connect(&self, interrupt: &Arc<Interrupt>, queues: [u16; RINGS]) {
        let to = To { interrupt: Arc::clone(interrupt), queues, wires: [None, None] };
        *self.shared.lock() = Some(to);
        let shared = Arc::downgrade(&self.shared);
        interrupt.on_rewired(Some(Arc::new(move || {
            shared.upgrade().inspect(|shared| shared.wake());
        })));
        self.shared.follow();
    }

    /// Tells what is still to be told, and then nobody. The kernel signals nothing more.
    pub(super) fn disconnect(&self) {
        self.shared.tell();
        if let Some(to) = self.shared.lock().take() {
            to.interrupt.on_rewired(None);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Option<To>> {
        self.to.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // It can only fail when the counter is full, and then the thread is awake.
        let _ = self.wake.write(1);
    }

    /// Has the kernel signal what the driver listens to now.
    fn follow(&self) {
        let mut to = self.lock();
        let Some(to) = &mut *to else { return };
        for (ring, queue) in to.queues.into_iter().enumerate() {
            let wire = to.interrupt.wire(queue);
            let same = match (&wire, &to.wires[ring]) {
                (Some(new), Some(old)) => Arc::ptr_eq(new, old),
                (new, old) => new.is_none() && old.is_none(),
            };
            if same {
                continue;
            }
            let call = wire.as_ref().map_or(self.calls[ring].as_fd(), |wire| borrow(wire.eventfd()));
            match self.kernel.set_call(ring as u32, call) {
                Ok(()) => to.wires[ring] = wire,
                Err(error) => tracing::warn!("{}: moving the interrupt of queue {queue}: {error}", self.id),
            }
            // What was signalled meanwhile went to the old one.
            to.interrupt.queue(queue);
        }
    }

    fn run(&self) {
        loop {
            let fds = [&self.wake, &self.broken, &self.calls[0], &self.calls[1]];
            let mut fds = fds.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN));
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => {
                    tracing::error!("{}: waiting for the kernel's calls: {error}", self.id);
                    return;
                }
            }
            if self.quits.load(Ordering::SeqCst) {
                return;
            }
            if self.wake.read().is_ok() {
                self.follow();
            }
            self.tell();
        }
    }

    /// Tells what was signalled.
    fn tell(&self) {
        let to = self.lock();
        for (ring, call) in self.calls.iter().enumerate() {
            if call.read().is_ok()
                && let Some(to) = &*to
            {
                to.interrupt.queue(to.queues[ring]);
            }
        }
        if self.broken.read().is_ok()
            && let Some(to) = &*to
        {
            tracing::warn!("{}: the kernel finds a ring broken; its driver must reset it", self.id);
            to.interrupt.needs_reset();
        }
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        self.shared.quits.store(true, Ordering::SeqCst);
        self.shared.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of {} panicked", self.shared.id);
        }
    }
}
