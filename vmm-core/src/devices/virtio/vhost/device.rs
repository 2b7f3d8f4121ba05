//! The device.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::calls::Calls;
use super::ioctls::{MAX_REGIONS, Region, Regions, RingAddress, VhostFd};
use super::kernel::Kernel;
use super::node::Node;
use crate::cpr::Mode;
use crate::cpr::blockers::Blocker;
use crate::devices::DeviceError;
use crate::devices::eventfd::borrow;
use crate::devices::virtio::{ActiveQueue, Run};

/// Rings of a vhost device.
pub const RINGS: usize = 2;

/// What every driver is offered of rings: indirect descriptors, event index, virtio 1.
const NEEDED: u64 = 1 << 28 | 1 << 29 | 1 << 32;

/// What is behind the rings.
#[derive(Debug)]
pub enum Backend {
    /// A queue of a tap (a duplicate of its descriptor): the rings are its receiving and its sending queue.
    Tap(OwnedFd),
    /// The host's sockets.
    Sockets,
}

/// A vhost device.
pub struct Vhost {
    id: String,
    node: Node,
    kernel: Arc<dyn Kernel>,
    features: u64,
    calls: Calls,
    running: Mutex<Option<Running>>,
}

/// What the kernel works with.
struct Running {
    /// Mapped for as long as the kernel may reach it.
    memory: Arc<GuestMemoryMmap>,
    queues: [ActiveQueue; RINGS],
    backend: Backend,
}

impl Vhost {
    /// Opens one for the device `id`, and becomes its owner.
    pub fn open(id: &str, node: Node) -> Result<Self, DeviceError> {
        Self::with(id, node, Arc::new(VhostFd(node.open(id)?)))
    }

    /// The same on what the caller has.
    pub(crate) fn with(id: &str, node: Node, kernel: Arc<dyn Kernel>) -> Result<Self, DeviceError> {
        kernel.set_owner().map_err(DeviceError::io(id, format!("becoming the owner of {}", node.path())))?;
        let features =
            kernel.features().map_err(DeviceError::io(id, format!("asking {} what it can", node.path())))?;
        if features & NEEDED != NEEDED {
            let found = format!("{} with features {features:#x}", node.path());
            return Err(DeviceError::impossible(id)((found, format!("{NEEDED:#x} among them"))));
        }
        let calls = Calls::start(id, &kernel)?;
        Ok(Self { id: id.to_owned(), node, kernel, features, calls, running: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, doing: &str) -> impl FnOnce(Errno) -> DeviceError {
        DeviceError::io(&self.id, format!("{doing} ({})", self.node.path()))
    }

    /// The features that the kernel has: a driver can only be offered those, of rings and of the device.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// What stands in the way of a handover in this mode. In an exec it is known that the next one opens the same node.
    pub fn blockers(&self, mode: Mode) -> Vec<Blocker> {
        if mode != Mode::CprExec {
            return Vec::new();
        }
        let refused = self.node.open(&self.id).err();
        refused.map(|error| Blocker::new(&self.id, error.without_device())).into_iter().collect()
    }

    /// vhost-vsock: takes the guest's address, which nobody else may have.
    pub fn set_guest_cid(&self, cid: u32) -> nix::Result<()> {
        self.kernel.set_guest_cid(cid.into())
    }

    /// Gives the kernel two queues, its rings 0 and 1, and has it look at each. It is stopped.
    pub fn start(&self, run: Run, backend: Backend) -> Result<(), DeviceError> {
        let Run { memory, features, queues } = run;
        let queues: [ActiveQueue; RINGS] = queues.try_into().map_err(|queues: Vec<_>| {
            let found = format!("{} queues for {}", queues.len(), self.node.path());
            DeviceError::impossible(&self.id)((found, RINGS.to_string()))
        })?;
        let mut slot = self.lock();
        self.kernel.set_features(features & self.features).map_err(self.failed("setting its features"))?;
        self.kernel
            .set_memory(&self.regions(&memory)?)
            .map_err(self.failed("telling it the guest's memory"))?;
        for (ring, queue) in (0..).zip(&queues) {
            self.set_ring(ring, queue, &memory)?;
        }
        self.calls.connect(&queues[0].interrupt, [queues[0].index, queues[1].index]);
        let running = Running { memory, queues, backend };
        if let Err(error) = self.serve(&running) {
            self.calls.disconnect();
            return Err(error);
        }
        *slot = Some(running);
        Ok(())
    }

    /// Takes the queues back, in their order. None if it is stopped. After an error it goes on.
    pub fn stop(&self) -> Result<Vec<ActiveQueue>, DeviceError> {
        let mut slot = self.lock();
        let Some(mut running) = slot.take() else { return Ok(Vec::new()) };
        let halted = self.halt(&running.backend).map_err(self.failed("stopping it"));
        if let Err(error) = halted.and_then(|()| self.note_progress(&mut running)) {
            if let Err(again) = self.serve(&running) {
                tracing::error!("{again}");
            }
            *slot = Some(running);
            return Err(error);
        }
        self.calls.disconnect();
        Ok(running.queues.into())
    }

    fn set_ring(&self, ring: u32, queue: &ActiveQueue, memory: &GuestMemoryMmap) -> Result<(), DeviceError> {
        let address = address(ring, queue, memory).map_err(|why| {
            DeviceError::impossible(&self.id)((
                format!("queue {}: {why}", queue.index),
                "rings in RAM".into(),
            ))
        })?;
        let set = || {
            self.kernel.set_size(ring, queue.ring.size().into())?;
            self.kernel.set_address(&address)?;
            self.kernel.set_base(ring, queue.ring.next_avail().into())?;
            self.kernel.set_error(ring, self.calls.broken())?;
            self.kernel.set_call(ring, self.calls.call(ring as usize))?;
            self.kernel.set_kick(ring, borrow(&queue.kick))
        };
        set().map_err(self.failed(&format!("telling it queue {}", queue.index)))
    }

    /// Has the kernel serve the rings that it was told, and look at each.
    fn serve(&self, running: &Running) -> Result<(), DeviceError> {
        let served = match &running.backend {
            Backend::Tap(tap) => {
                (0..RINGS as u32).try_for_each(|ring| self.kernel.set_tap(ring, Some(tap.as_fd())))
            }
            Backend::Sockets => self.kernel.set_running(true),
        };
        served.map_err(|error| {
            // Perhaps one ring is served.
            let _ = self.halt(&running.backend);
            self.failed("starting it")(error)
        })?;
        for queue in &running.queues {
            // It can only fail when the counter is full, and then the kernel looks all the same.
            let _ = queue.kick.write(1);
        }
        Ok(())
    }

    /// Ends that: what the kernel does with a ring at this moment is done when this returns.
    fn halt(&self, backend: &Backend) -> nix::Result<()> {
        match backend {
            Backend::Tap(_) => (0..RINGS as u32).try_for_each(|ring| self.kernel.set_tap(ring, None)),
            Backend::Sockets => self.kernel.set_running(false),
        }
    }

    /// Puts in the queues how far the kernel has come.
    fn note_progress(&self, running: &mut Running) -> Result<(), DeviceError> {
        for (ring, queue) in (0..).zip(&mut running.queues) {
            let next = self.kernel.base(ring).map_err(self.failed("asking how far it has come"))?;
            // It keeps its place in the used ring there, and nowhere else.
            let index = GuestAddress(queue.ring.used_ring().saturating_add(2));
            let used: u16 = running.memory.read_obj(index).map_err(|error| {
                let found = format!("queue {}: its used ring: {error}", queue.index);
                DeviceError::impossible(&self.id)((found, "rings in RAM".into()))
            })?;
            queue.ring.set_next_avail(next as u16);
            queue.ring.set_next_used(u16::from_le(used));
        }
        Ok(())
    }

    fn regions(&self, memory: &GuestMemoryMmap) -> Result<Regions, DeviceError> {
        let region = |region: &vm_memory::GuestRegionMmap| Region {
            guest: region.start_addr().0,
            size: region.len(),
            host: region.as_ptr() as u64,
            flags: 0,
        };
        let list: Vec<_> = memory.iter().map(region).collect();
        Regions::new(&list).ok_or_else(|| {
            let found = format!("{} regions of memory", list.len());
            DeviceError::impossible(&self.id)((found, format!("at most {MAX_REGIONS} for vhost")))
        })
    }
}

impl Drop for Vhost {
    /// The kernel lets go of the guest's memory before it is unmapped.
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::debug!("letting go of it at last: {error}");
        }
    }
}

/// Where a queue's rings are in this process's memory, if each lies in one piece.
pub(super) fn address(
    ring: u32,
    queue: &ActiveQueue,
    memory: &GuestMemoryMmap,
) -> Result<RingAddress, String> {
    let size = usize::from(queue.ring.size());
    let host = |guest: u64, length: usize| {
        let slice = memory.get_slice(GuestAddress(guest), length).map_err(|error| error.to_string())?;
        Ok::<_, String>(slice.ptr_guard().as_ptr() as u64)
    };
    // virtio 1.2, 2.7: 16 bytes a descriptor; flags, index and event index around each ring.
    Ok(RingAddress {
        ring,
        flags: 0,
        descriptors: host(queue.ring.desc_table(), 16 * size)?,
        used: host(queue.ring.used_ring(), 6 + 8 * size)?,
        available: host(queue.ring.avail_ring(), 6 + 2 * size)?,
        log: 0,
    })
}
