//! Queues go to the device and come back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::GuestMemoryMmap;

use super::function::{Inner, VirtioPci};
use super::registers::{DRIVER_OK, EVENT_IDX, QueueRegisters, Registers};
use crate::devices::DeviceError;
use crate::devices::virtio::{ActiveQueue, Run};

/// How long a vCPU that resets the device waits for it. The driver asks again.
pub(super) const RESET: Duration = Duration::from_millis(20);

impl VirtioPci {
    /// Gives the device its queues.
    pub(super) fn start(&self, inner: &mut Inner) {
        let wanted = inner.registers.status & DRIVER_OK != 0;
        if inner.running || inner.quiesced || !wanted || self.interrupt.is_reset_needed() {
            return;
        }
        let run = self.active_queues(&inner.registers).and_then(|queues| {
            let (memory, features) = (Arc::clone(&self.memory), inner.registers.features);
            // After an error too: it may have begun with some of them, and only a stop takes them back.
            inner.running = true;
            self.device.start(Run { memory, features, queues }).map_err(|error| error.to_string())
        });
        if let Err(error) = run {
            tracing::warn!("{}: {error}; its driver must reset it", self.device.id());
            self.interrupt.needs_reset();
        }
    }

    pub(super) fn active_queues(&self, registers: &Registers) -> Result<Vec<ActiveQueue>, String> {
        let enabled = registers.queues.iter().zip(0..).filter(|(queue, _)| queue.enabled);
        let queue = |(queue, index): (&QueueRegisters, u16)| {
            let ring = ring(queue, registers.features & EVENT_IDX != 0, &self.memory)
                .map_err(|error| format!("queue {index}: {error}"))?;
            let kick = Arc::clone(&self.kicks[usize::from(index)]);
            Ok(ActiveQueue::new(index, ring, kick, Arc::clone(&self.interrupt)))
        };
        enabled.map(queue).collect()
    }

    /// Takes the queues back.
    pub(super) fn stop(&self, inner: &mut Inner, deadline: Instant) -> Result<(), DeviceError> {
        if inner.running {
            for queue in self.device.stop(deadline)? {
                if let Some(registers) = inner.registers.queues.get_mut(usize::from(queue.index)) {
                    registers.next_available = queue.ring.next_avail();
                    registers.next_used = queue.ring.next_used();
                }
            }
            inner.running = false;
        }
        if inner.resetting {
            inner.resetting = false;
            self.reset(inner);
        }
        Ok(())
    }

    /// Puts the device back to its beginning. It is stopped.
    fn reset(&self, inner: &mut Inner) {
        inner.registers.reset();
        self.interrupt.reset();
        self.device.reset();
        for kick in &self.kicks {
            // Nothing to read is what is wanted.
            let _ = kick.read();
        }
    }

    /// Does something with a queue while the device does not have it.
    pub(super) fn with_queue(&self, inner: &mut Inner, index: u16, change: impl FnOnce(&mut QueueRegisters)) {
        if let Err(error) = self.stop(inner, Instant::now() + RESET) {
            tracing::warn!("{error}: queue {index} is left as it is");
            return;
        }
        if let Some(queue) = inner.registers.queues.get_mut(usize::from(index)) {
            change(queue);
        }
        self.start(inner);
    }
}

/// The ring that a queue's registers describe, if all of it is in memory.
fn ring(queue: &QueueRegisters, event_idx: bool, memory: &GuestMemoryMmap) -> Result<Queue, String> {
    let ring = Queue::try_from(QueueState {
        max_size: queue.max_size,
        next_avail: queue.next_available,
        next_used: queue.next_used,
        event_idx_enabled: event_idx,
        size: queue.size,
        ready: true,
        desc_table: queue.descriptors,
        avail_ring: queue.available,
        used_ring: queue.used,
    })
    .map_err(|error| error.to_string())?;
    if ring.is_valid(memory) {
        return Ok(ring);
    }
    let QueueRegisters { descriptors, available, used, .. } = queue;
    Err(format!("its rings at {descriptors:#x}, {available:#x} and {used:#x} are not all in RAM"))
}
