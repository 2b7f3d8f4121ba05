//! The device.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::config::VsockConfig;
use super::events::{self, EVENTS};
use super::turn::{Before, Turn};
use crate::cpr::Mode;
use crate::cpr::fds::{FdName, FdTable};
use crate::cpr::format::StateReader;
use crate::devices::DeviceError;
use crate::devices::virtio::vhost::{Backend, Node, RINGS, Vhost};
use crate::devices::virtio::{ActiveQueue, DeviceKind, Run, VirtioDevice};

/// virtio's id of socket devices, and PCI's class of communication controllers.
const KIND: DeviceKind = DeviceKind { id: 19, class: 0x07_8000 };
/// There are sockets that keep the bounds of messages, too.
const SEQPACKET: u64 = 1 << 1;
/// Descriptors of its queues: to the guest, from the guest, events.
const QUEUE_SIZES: [u16; 3] = [128; 3];
/// For the process that the guest comes from to let go of the CID.
const LET_GO: Duration = Duration::from_secs(10);
/// Between two looks whether it has.
const LOOK: Duration = Duration::from_millis(2);

/// Sockets between guest and host.
pub struct Vsock {
    features: u64,
    turn: Mutex<Turn>,
    shared: Arc<Shared>,
}

struct Shared {
    id: String,
    cid: u32,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// None once the guest lives elsewhere.
    vhost: Option<Vhost>,
    /// Whether the CID is ours.
    named: bool,
    /// Who has it before us.
    before: Option<Before>,
    /// Whether a thread waits for it.
    awaited: bool,
    /// What is served once it is.
    waiting: Option<Run>,
    /// The queues that the kernel does not have.
    others: Vec<ActiveQueue>,
    /// Whether the guest is to be told that its connections are closed.
    reset_due: bool,
}

impl Vsock {
    /// A device after reset, whose CID is taken now.
    pub fn open(id: &str, config: &VsockConfig) -> Result<Self, DeviceError> {
        let vsock = Self::new(id, config, None)?;
        vsock.shared.name(&mut vsock.shared.lock())?;
        Ok(vsock)
    }

    /// A device after reset, for a guest whose CID another process still has.
    pub fn adopt(id: &str, config: &VsockConfig, fds: &mut FdTable) -> Result<Self, DeviceError> {
        let name = turn_name(id);
        let before = Before::adopt(&name, fds.take(&name)?)?;
        Self::new(id, config, Some(before))
    }

    fn new(id: &str, config: &VsockConfig, before: Option<Before>) -> Result<Self, DeviceError> {
        let vhost = Vhost::open(id, Node::Vsock)?;
        let features = vhost.features() & SEQPACKET;
        let turn = Turn::begin().map_err(DeviceError::io(id, "making a pipe"))?;
        let inner = Inner { vhost: Some(vhost), before, ..Inner::default() };
        let shared = Shared { id: id.to_owned(), cid: config.guest_cid, inner: Mutex::new(inner) };
        Ok(Self { features, turn: Mutex::new(turn), shared: Arc::new(shared) })
    }

    /// Whether the kernel has its queues, or could have them.
    #[cfg(test)]
    pub(super) fn is_served(&self) -> bool {
        let inner = self.shared.lock();
        inner.named && inner.waiting.is_none()
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn turn_name(id: &str) -> FdName {
    FdName::new(format!("{id}.turn"), 0)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the CID.
    fn name(&self, inner: &mut Inner) -> Result<(), DeviceError> {
        let taken = inner.vhost.as_ref().map_or(Err(Errno::ENODEV), |vhost| vhost.set_guest_cid(self.cid));
        let why = match taken {
            Err(Errno::EADDRINUSE) => ": another guest on this host has it",
            _ => "",
        };
        taken.map_err(DeviceError::io(&self.id, format!("taking guest-cid {}{why}", self.cid)))?;
        inner.named = true;
        Ok(())
    }

    /// Has the kernel serve its rings, now or when the CID is ours.
    fn serve(&self, inner: &mut Inner, run: Run) -> Result<(), DeviceError> {
        if !inner.named && !inner.awaited {
            self.name(inner)?;
        }
        match &inner.vhost {
            Some(vhost) if inner.named => vhost.start(run, Backend::Sockets)?,
            _ => inner.waiting = Some(run),
        }
        Ok(())
    }

    /// The CID is ours, or will not be.
    fn come_to_an_end_of_waiting(&self, inner: &mut Inner, named: Result<(), DeviceError>) {
        inner.awaited = false;
        let Some(run) = inner.waiting.take() else { return };
        let interrupt = run.queues.first().map(|queue| Arc::clone(&queue.interrupt));
        if let Err(error) = named.and_then(|()| self.serve(inner, run)) {
            tracing::error!("{error}; its driver must reset it");
            interrupt.inspect(|interrupt| interrupt.needs_reset());
        }
    }
}

/// Takes the CID when it is free.
fn succeed(shared: &Weak<Shared>, before: &Before) {
    let deadline = Instant::now() + LET_GO;
    before.wait(LET_GO);
    while let Some(shared) = shared.upgrade() {
        let mut inner = shared.lock();
        if inner.vhost.is_none() {
            return;
        }
        let named = shared.name(&mut inner);
        if named.is_ok() || Instant::now() > deadline {
            return shared.come_to_an_end_of_waiting(&mut inner, named);
        }
        drop(inner);
        std::thread::sleep(LOOK);
    }
}

impl VirtioDevice for Vsock {
    fn id(&self) -> &str {
        &self.shared.id
    }

    fn kind(&self) -> DeviceKind {
        KIND
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// `guest_cid`.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = u64::from(self.shared.cid).to_le_bytes();
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = usize::try_from(at).ok().and_then(|at| config.get(at)).copied().unwrap_or(0);
        }
    }

    fn start(&self, run: Run) -> Result<(), DeviceError> {
        let Run { memory, features, queues } = run;
        let mut inner = self.shared.lock();
        let (queues, mut others): (Vec<_>, Vec<_>) =
            queues.into_iter().partition(|queue| usize::from(queue.index) < RINGS);
        // A driver that has given no buffer is only beginning, and has no connections. It is told the next time.
        if let Some(queue) = others.iter_mut().find(|queue| inner.reset_due && queue.index == EVENTS) {
            let told = events::transport_reset(queue, &memory);
            let expected = || "a buffer for an event".to_owned();
            let told = told.map_err(|error| (error.to_string(), expected()));
            inner.reset_due = !told.map_err(DeviceError::impossible(&self.shared.id))?;
        }
        inner.others = others;
        if queues.len() == RINGS {
            return self.shared.serve(&mut inner, Run { memory, features, queues });
        }
        inner.others.extend(queues);
        Ok(())
    }

    fn stop(&self, _deadline: Instant) -> Result<Vec<ActiveQueue>, DeviceError> {
        let mut inner = self.shared.lock();
        let mut queues = match (inner.waiting.take(), &inner.vhost) {
            (Some(run), _) => run.queues,
            (None, Some(vhost)) => vhost.stop()?,
            (None, None) => Vec::new(),
        };
        queues.append(&mut inner.others);
        Ok(queues)
    }

    fn reset(&self) {
        self.shared.lock().reset_due = false;
    }

    fn resume(&self) {
        let mut inner = self.shared.lock();
        let Some(before) = inner.before.take() else { return };
        let shared = Arc::downgrade(&self.shared);
        let spawned = std::thread::Builder::new().name("vsock-cid".into());
        match spawned.spawn(move || succeed(&shared, &before)) {
            Ok(_) => inner.awaited = true,
            Err(error) => tracing::error!("{}: starting a thread: {error}", self.shared.id),
        }
    }

    /// The host's sockets are told by this that their connections are closed, and the CID is free.
    fn hand_over(&self) {
        let vhost = self.shared.lock().vhost.take();
        drop(vhost);
        self.turn().end();
    }

    /// It has no state of its own; but its connections did not come along.
    fn load(&self, _slot: u32, _state: &mut StateReader) -> Result<(), DeviceError> {
        self.shared.lock().reset_due = true;
        Ok(())
    }

    fn descriptors(&self, mode: Mode, fds: &mut FdTable) -> Result<(), DeviceError> {
        if mode != Mode::CprReboot {
            self.turn().register(turn_name(&self.shared.id), fds)?;
        }
        Ok(())
    }
}
