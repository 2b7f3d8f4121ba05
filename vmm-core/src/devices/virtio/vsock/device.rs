//! The device.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;

use super::config::VsockConfig;
use super::events::{self, EVENTS};
use super::turn::{Before, Turn};
use crate::cpr::Mode;
use crate::cpr::blockers::Blocker;
use crate::cpr::fds::{FdName, FdTable};
use crate::cpr::format::StateReader;
use crate::devices::DeviceError;
use crate::devices::virtio::vhost::{Backend, Node, RINGS, Vhost};
use crate::devices::virtio::{ActiveQueue, DeviceKind, Run, VirtioDevice, read_from};

/// virtio's id of socket devices, and PCI's class of communication controllers.
const KIND: DeviceKind = DeviceKind { id: 19, class: 0x07_8000 };
/// There are sockets that keep the bounds of messages, too.
const SEQPACKET: u64 = 1 << 1;
/// Descriptors of its queues: to the guest, from the guest, events.
const QUEUE_SIZES: [u16; 3] = [128; 3];
/// For the process that the guest comes from to let go of the CID.
const LET_GO: Duration = Duration::from_secs(10);
/// For the guest to hear that its connections are closed.
const HEAR: Duration = Duration::from_secs(5);
/// Between two looks whether they have.
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
    /// Whether a thread waits for the CID, or for the guest to hear what it was told.
    awaited: bool,
    /// What is served then.
    waiting: Option<Run>,
    /// The queues that the kernel does not have.
    others: Vec<ActiveQueue>,
    /// Whether the guest is to be told that its connections are closed.
    reset_due: bool,
    /// The buffers that the driver had made available for events when it was told.
    told: Option<u16>,
}

impl Inner {
    /// Whether the guest has heard what it was told: its driver makes the buffer available again. A connection that is
    /// made before that would be closed with the old ones.
    fn is_heard(&self, memory: &GuestMemoryMmap) -> bool {
        let events = self.others.iter().find(|queue| queue.index == EVENTS);
        let Some((told, events)) = self.told.zip(events) else { return true };
        events.ring.avail_idx(memory, Ordering::Acquire).map_or(true, |now| now.0 != told)
    }

    /// There is nothing more to wait for, or no use in it.
    fn end_waiting(&mut self, named: Result<(), DeviceError>) {
        self.awaited = false;
        let (Some(run), Some(vhost)) = (self.waiting.take(), &self.vhost) else { return };
        let interrupt = run.queues.first().map(|queue| Arc::clone(&queue.interrupt));
        if let Err(error) = named.and_then(|()| vhost.start(run, Backend::Sockets)) {
            tracing::error!("{error}; its driver must reset it");
            interrupt.inspect(|interrupt| interrupt.needs_reset());
        }
    }
}

impl Vsock {
    /// A device after reset, whose CID is taken now.
    pub fn open(id: &str, config: &VsockConfig) -> Result<Self, DeviceError> {
        Self::open_on(id, config, Vhost::open(id, Node::Vsock)?)
    }

    /// The same on a vhost device of the caller's.
    pub(crate) fn open_on(id: &str, config: &VsockConfig, vhost: Vhost) -> Result<Self, DeviceError> {
        let vsock = Self::new(id, config, None, vhost)?;
        vsock.shared.name(&mut vsock.shared.lock())?;
        Ok(vsock)
    }

    /// A device after reset, for a guest whose CID another process still has.
    pub fn adopt(id: &str, config: &VsockConfig, fds: &mut FdTable) -> Result<Self, DeviceError> {
        Self::adopt_on(id, config, fds, Vhost::open(id, Node::Vsock)?)
    }

    /// The same on a vhost device of the caller's.
    pub(crate) fn adopt_on(
        id: &str,
        config: &VsockConfig,
        fds: &mut FdTable,
        vhost: Vhost,
    ) -> Result<Self, DeviceError> {
        let name = turn_name(id);
        let before = Before::adopt(&name, fds.take(&name)?)?;
        Self::new(id, config, Some(before), vhost)
    }

    fn new(
        id: &str,
        config: &VsockConfig,
        before: Option<Before>,
        vhost: Vhost,
    ) -> Result<Self, DeviceError> {
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

    /// Has the kernel serve its rings, now or when it may.
    fn serve(self: &Arc<Self>, inner: &mut Inner, run: Run) -> Result<(), DeviceError> {
        if !inner.named && !inner.awaited {
            self.name(inner)?;
        }
        match &inner.vhost {
            Some(vhost) if inner.named && inner.is_heard(&run.memory) => {
                vhost.start(run, Backend::Sockets)?;
            }
            _ => {
                inner.waiting = Some(run);
                self.attend(inner, None)?;
            }
        }
        Ok(())
    }

    /// Has a thread wait for what is to be waited for.
    fn attend(self: &Arc<Self>, inner: &mut Inner, before: Option<Before>) -> Result<(), DeviceError> {
        if !inner.awaited {
            let shared = Arc::downgrade(self);
            let thread = std::thread::Builder::new().name("vsock-cid".into());
            let spawned = thread.spawn(move || attend(&shared, before.as_ref()));
            spawned.map_err(DeviceError::io(&self.id, "starting a thread"))?;
            inner.awaited = true;
        }
        Ok(())
    }
}

/// Takes the CID when it is free, and has the rings served when the guest has heard that its connections are closed.
fn attend(shared: &Weak<Shared>, before: Option<&Before>) {
    let start = Instant::now();
    before.inspect(|before| before.wait(LET_GO));
    while let Some(shared) = shared.upgrade() {
        let mut inner = shared.lock();
        if inner.vhost.is_none() {
            return;
        }
        let named = if inner.named { Ok(()) } else { shared.name(&mut inner) };
        let ready = match &named {
            Ok(()) => {
                let heard = inner.waiting.as_ref().is_none_or(|run| inner.is_heard(&run.memory));
                heard || start.elapsed() > HEAR
            }
            Err(_) => start.elapsed() > LET_GO,
        };
        if ready {
            let waited = start.elapsed().as_millis();
            tracing::debug!("{}: guest-cid {} was waited for {waited} ms", shared.id, shared.cid);
            return inner.end_waiting(named);
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
        read_from(&config, offset, data);
    }

    fn start(&self, run: Run) -> Result<(), DeviceError> {
        let Run { memory, features, queues } = run;
        let mut inner = self.shared.lock();
        let (queues, mut others): (Vec<_>, Vec<_>) =
            queues.into_iter().partition(|queue| usize::from(queue.index) < RINGS);
        // A driver that has given no buffer is only beginning, and has no connections. It is told the next time.
        if let Some(queue) = others.iter_mut().find(|queue| inner.reset_due && queue.index == EVENTS) {
            let impossible = DeviceError::impossible(&self.shared.id);
            inner.told = events::transport_reset(queue, &memory)
                .map_err(|error| impossible((error.to_string(), "a buffer for an event".into())))?;
            inner.reset_due = inner.told.is_none();
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
        let mut inner = self.shared.lock();
        (inner.reset_due, inner.told) = (false, None);
    }

    fn resume(&self) {
        let mut inner = self.shared.lock();
        if let Some(before) = inner.before.take()
            && let Err(error) = self.shared.attend(&mut inner, Some(before))
        {
            tracing::error!("{error}");
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

    fn blockers(&self, mode: Mode) -> Vec<Blocker> {
        self.shared.lock().vhost.as_ref().map_or_else(Vec::new, |vhost| vhost.blockers(mode))
    }
}
