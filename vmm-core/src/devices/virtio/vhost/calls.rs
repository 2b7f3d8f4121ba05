//! The kernel's calls to the driver, taken by a thread and given to the device's interrupts.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::device::RINGS;
use crate::devices::DeviceError;
use crate::devices::virtio::Interrupt;

/// The thread.
pub(super) struct Calls {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    id: String,
    /// Signalled by the kernel: something was given back in the ring.
    calls: [EventFd; RINGS],
    /// Signalled by the kernel: a ring is broken.
    broken: EventFd,
    quit: EventFd,
    quits: AtomicBool,
    /// Whom to tell: the queue that each ring is.
    to: Mutex<Option<To>>,
}

struct To {
    interrupt: Arc<Interrupt>,
    queues: [u16; RINGS],
}

impl Calls {
    /// Starts the thread of the device `id`, with nobody to tell.
    pub(super) fn start(id: &str) -> Result<Self, DeviceError> {
        let eventfd = || {
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .map_err(DeviceError::io(id, "making an eventfd"))
        };
        let shared = Arc::new(Shared {
            id: id.to_owned(),
            calls: [eventfd()?, eventfd()?],
            broken: eventfd()?,
            quit: eventfd()?,
            quits: AtomicBool::new(false),
            to: Mutex::default(),
        });
        let thread = std::thread::Builder::new().name(id.chars().take(15).collect()).spawn({
            let shared = Arc::clone(&shared);
            move || shared.run()
        });
        Ok(Self { shared, thread: Some(thread.map_err(DeviceError::io(id, "starting its thread"))?) })
    }

    /// What the kernel signals for a ring.
    pub(super) fn call(&self, ring: usize) -> BorrowedFd<'_> {
        self.shared.calls[ring].as_fd()
    }

    /// What the kernel signals when a ring is broken.
    pub(super) fn broken(&self) -> BorrowedFd<'_> {
        self.shared.broken.as_fd()
    }

    /// Tells these from now on.
    pub(super) fn connect(&self, interrupt: &Arc<Interrupt>, queues: [u16; RINGS]) {
        *self.shared.lock() = Some(To { interrupt: Arc::clone(interrupt), queues });
    }

    /// Tells what is still to be told, and then nobody. The kernel signals nothing more.
    pub(super) fn disconnect(&self) {
        self.shared.tell();
        self.shared.lock().take();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Option<To>> {
        self.to.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        loop {
            let fds = [&self.quit, &self.broken, &self.calls[0], &self.calls[1]];
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
        // It can only fail when the counter is full, and then the thread is awake.
        let _ = self.shared.quit.write(1);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of {} panicked", self.shared.id);
        }
    }
}
