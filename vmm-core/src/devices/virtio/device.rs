//! What the transport wants of a device.

use std::sync::Arc;
use std::time::Instant;

use vm_memory::GuestMemoryMmap;

use super::queue::ActiveQueue;
use crate::cpr::Mode;
use crate::cpr::blockers::Blocker;
use crate::cpr::fds::FdTable;
use crate::cpr::format::{StateReader, StateWriter};
use crate::devices::DeviceError;

/// What a device shows itself as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceKind {
    /// The virtio device id (virtio 1.2, 5).
    pub id: u16,
    /// The PCI class code, 24 bits.
    pub class: u32,
}

/// What a device works with while it is started.
pub struct Run {
    /// The guest's memory.
    pub memory: Arc<GuestMemoryMmap>,
    /// The features that the driver took.
    pub features: u64,
    /// The queues that are enabled.
    pub queues: Vec<ActiveQueue>,
}

/// A virtio device, whatever its transport.
pub trait VirtioDevice: Send + Sync {
    /// The device's id in the machine.
    fn id(&self) -> &str;

    /// What it is.
    fn kind(&self) -> DeviceKind;

    /// The device's own feature bits. Those of ring and transport are the transport's to offer.
    fn features(&self) -> u64 {
        0
    }

    /// The largest size of each of its queues, powers of two.
    fn queue_sizes(&self) -> &[u16];

    /// Reads its configuration; zero where there is nothing.
    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    /// Writes its configuration.
    fn write_config(&self, _offset: u64, _data: &[u8]) {}

    /// Takes the queues and works on them, after a look at each. Called by a vCPU that set `DRIVER_OK`, and after a stop.
    /// Must not block.
    fn start(&self, run: Run) -> Result<(), DeviceError>;

    /// Takes no more requests, waits for those begun, and gives the queues back. When they do not end by the deadline
    /// ([`DeviceError::Busy`]), the device goes on as if it had not been asked.
    fn stop(&self, deadline: Instant) -> Result<Vec<ActiveQueue>, DeviceError>;

    /// Forgets what the driver told it. It is stopped.
    fn reset(&self) {}

    /// Writes its own sections as instances numbered `slot`. It is stopped.
    fn save(&self, _slot: u32, _out: &mut StateWriter) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Reads them. It has not been started.
    fn load(&self, _slot: u32, _state: &mut StateReader) -> Result<(), DeviceError> {
        Ok(())
    }

    /// See [`Device::descriptors`](crate::devices::Device::descriptors).
    fn descriptors(&self, _mode: Mode, _fds: &mut FdTable) -> Result<(), DeviceError> {
        Ok(())
    }

    /// See [`Device::blockers`](crate::devices::Device::blockers).
    fn blockers(&self, _mode: Mode) -> Vec<Blocker> {
        Vec::new()
    }
}
