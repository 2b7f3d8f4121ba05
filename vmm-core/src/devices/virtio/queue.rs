//! A queue in the hands of a device.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::interrupt::Interrupt;

/// The available ring's flag that says that no interrupt is wanted.
const NO_INTERRUPT: u16 = 1;

/// A ring that does not hold what a driver may put in it.
#[derive(Debug, thiserror::Error)]
#[error("queue {queue}: {why}")]
pub struct RingError {
    /// Which queue.
    pub queue: u16,
    /// What is wrong with it.
    pub why: String,
}

/// A queue that is enabled.
pub struct ActiveQueue {
    /// Its number.
    pub index: u16,
    /// The ring.
    pub ring: Queue,
    /// Signalled by the driver's notifications.
    pub kick: Arc<EventFd>,
    /// The way back.
    pub interrupt: Arc<Interrupt>,
    /// Something was given back since the driver was last told.
    used: bool,
    /// The available index when notifications were last asked for.
    listened: Option<u16>,
}

impl ActiveQueue {
    /// A queue that a device may work on.
    pub fn new(index: u16, ring: Queue, kick: Arc<EventFd>, interrupt: Arc<Interrupt>) -> Self {
        Self { index, ring, kick, interrupt, used: false, listened: None }
    }

    /// What is wrong with it, or with what a driver has put in it.
    pub fn broken(&self, why: impl std::fmt::Display) -> RingError {
        RingError { queue: self.index, why: why.to_string() }
    }

    /// Takes the next chain of descriptors, if the driver has made one available. Its descriptors are not checked: each is
    /// when its memory is reached.
    pub fn pop<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
    ) -> Result<Option<DescriptorChain<&'m GuestMemoryMmap>>, RingError> {
        match self.ring.iter(memory) {
            Ok(mut chains) => Ok(chains.next()),
            Err(error) => Err(self.broken(error)),
        }
    }

    /// Leaves the chain that was taken last in the queue: it comes again.
    pub fn unpop(&mut self) {
        let next = self.ring.next_avail().wrapping_sub(1);
        self.ring.set_next_avail(next);
    }

    /// Gives a chain back, with `written` bytes in it.
    pub fn push(&mut self, memory: &GuestMemoryMmap, head: u16, written: u32) -> Result<(), RingError> {
        self.used = true;
        self.ring.add_used(memory, head, written).map_err(|error| self.broken(error))
    }

    /// Interrupts the driver if something was given back and it wants to hear of that.
    pub fn notify(&mut self, memory: &GuestMemoryMmap) -> Result<(), RingError> {
        if !std::mem::take(&mut self.used) {
            return Ok(());
        }
        let wanted = if self.ring.event_idx_enabled() {
            self.ring.needs_notification(memory).map_err(|error| self.broken(error))?
        } else {
            let flags = memory.read_obj::<u16>(GuestAddress(self.ring.avail_ring()));
            u16::from_le(flags.map_err(|error| self.broken(error))?) & NO_INTERRUPT == 0
        };
        if wanted {
            self.interrupt.queue(self.index);
        }
        Ok(())
    }

    /// Asks the driver for notifications. `true` when there is already something new, for which none will come. What was
    /// there the last time and was left in the queue is not new.
    pub fn listen(&mut self, memory: &GuestMemoryMmap) -> Result<bool, RingError> {
        let some = self.ring.enable_notification(memory).map_err(|error| self.broken(error))?;
        let index = self.ring.avail_idx(memory, Ordering::Acquire).map_err(|error| self.broken(error))?.0;
        Ok(self.listened.replace(index) != Some(index) && some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::driver;

    #[test]
    fn chains_that_are_left_in_the_queue_are_new_once() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        let available = |index: u16| memory.write_obj(index, GuestAddress(0x2002)).unwrap();
        let mut queue = driver::queue(0, 64, [0x1000, 0x2000, 0x3000], &driver::interrupt(1));
        assert!(!queue.listen(&memory).unwrap());
        available(1);
        assert!(queue.listen(&memory).unwrap());
        assert!(!queue.listen(&memory).unwrap());
        available(2);
        assert!(queue.listen(&memory).unwrap());
        queue.pop(&memory).unwrap().unwrap();
        queue.pop(&memory).unwrap().unwrap();
        assert!(!queue.listen(&memory).unwrap());
    }
}
