//! What the transport wants of a device.

use std::sync::Arc;
use std::time::Instant;

use vm_memory::GuestMemoryMmap;

use super::queue::ActiveQueue;
use crate::cpr::Mode;
use crate::cpr::blockers::Blocker;
use crate::cpr::fds::FdTable;
use crate::cpr::format::{StateReader, StateWriter};
use crate::devices::{DeviceError, Subscriber};

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

/// Reads of a device's configuration, or of any other bytes; zero where there is nothing.
pub(super) fn read_from(bytes: &[u8], offset: u64, data: &mut [u8]) {
    let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or_default();
    let n = rest.len().min(data.len());
    data[..n].copy_from_slice(&rest[..n]);
    data[n..].fill(0);
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
    /// Must not block. After an error it is stopped like one that works, and gives back what it took.
    fn start(&self, run: Run) -> Result<(), DeviceError>;

    /// Takes no more requests, waits for those begun, and gives the queues back. When they do not end by the deadline
    /// ([`DeviceError::Busy`]), the device goes on as if it had not been asked.
    fn stop(&self, deadline: Instant) -> Result<Vec<ActiveQueue>, DeviceError>;

    /// Forgets what the driver told it. It is stopped.
    fn reset(&self) {}

    /// Takes nothing from and gives nothing to the host any more. It is stopped.
    fn quiesce(&self) {}

    /// Deals with the host again, after [`Self::quiesce`] or [`Self::load`]. It is started after this.
    fn resume(&self) {}

    /// See [`Device::hand_over`](crate::devices::Device::hand_over).
    fn hand_over(&self) {}

    /// See [`Device::subscriber`](crate::devices::Device::subscriber).
    fn subscriber(&self) -> Option<Subscriber> {
        None
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_beyond_the_configuration_is_zero() {
        for (offset, expected) in [(0, [1, 2, 3, 0]), (2, [3, 0, 0, 0]), (3, [0; 4]), (u64::MAX, [0; 4])] {
            let mut data = [0xff; 4];
            read_from(&[1, 2, 3], offset, &mut data);
            assert_eq!(data, expected, "from {offset}");
        }
    }
}
