//! Who moves the packets of a pair of queues: a thread of this process, or the host's kernel.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use super::device::Shared;
use super::pair::Pair;
use crate::cpr::Mode;
use crate::cpr::blockers::Blocker;
use crate::devices::DeviceError;
use crate::devices::virtio::vhost::{Backend, Vhost};
use crate::devices::virtio::{ActiveQueue, Run, Worker};

/// Who moves the packets of a pair.
pub(super) enum Mover {
    /// A thread of this process.
    Thread(Worker),
    /// The kernel (vhost-net), by a descriptor that each process opens for itself: nothing of it has to change hands.
    Kernel(Vhost),
}

impl Mover {
    /// One for the `number`th pair, with nothing to move.
    pub(super) fn new(shared: &Arc<Shared>, number: u16, vhost: Option<Vhost>) -> Result<Self, DeviceError> {
        if let Some(vhost) = vhost {
            return Ok(Self::Kernel(vhost));
        }
        Ok(Self::Thread(Worker::spawn(&shared.id, Pair::new(Arc::clone(shared), number))?))
    }

    /// The features that it has, if not all.
    pub(super) fn features(&self) -> u64 {
        match self {
            Self::Thread(_) => u64::MAX,
            Self::Kernel(vhost) => vhost.features(),
        }
    }

    /// See [`Device::blockers`](crate::devices::Device::blockers).
    pub(super) fn blockers(&self, mode: Mode) -> Vec<Blocker> {
        match self {
            Self::Thread(_) => Vec::new(),
            Self::Kernel(vhost) => vhost.blockers(mode),
        }
    }

    /// Moves packets between these queues and the `number`th of the tap.
    pub(super) fn start(&self, shared: &Shared, number: usize, run: Run) -> Result<(), DeviceError> {
        match (self, shared.tap.queues().get(number)) {
            (Self::Kernel(vhost), Some(tap)) => {
                let tap = tap.as_fd().try_clone_to_owned();
                let tap = tap.map_err(DeviceError::io(&shared.id, "duplicating its tap's descriptor"))?;
                vhost.start(run, Backend::Tap(tap))?;
            }
            (Self::Thread(worker), _) => worker.start(run),
            (Self::Kernel(_), None) => {}
        }
        Ok(())
    }

    /// Gives the queues back.
    pub(super) fn stop(&self, deadline: Instant) -> Result<Vec<ActiveQueue>, DeviceError> {
        match self {
            Self::Thread(worker) => worker.stop(deadline),
            Self::Kernel(vhost) => vhost.stop(),
        }
    }
}
