//! A pair of queues, to and from the guest, with a queue of the tap.

use std::os::fd::AsFd;
use std::sync::Arc;

use nix::poll::PollFlags;
use vm_memory::GuestMemoryMmap;

use super::device::Shared;
use super::receive::Receiver;
use super::transmit::Sender;
use crate::devices::virtio::buffers::GuestBuffers;
use crate::devices::virtio::{ActiveQueue, Handler, RingError, Wait};

/// What the thread of a pair does with its queues.
pub(super) struct Pair {
    shared: Arc<Shared>,
    number: u16,
    /// Made at the first look after a start.
    ends: Option<(Receiver, Sender)>,
}

impl Pair {
    /// The `number`th pair.
    pub(super) fn new(shared: Arc<Shared>, number: u16) -> Self {
        Self { shared, number, ends: None }
    }

    /// The queue to the guest; that from it is the next.
    fn receive_queue(&self) -> u16 {
        2 * self.number
    }
}

impl Handler for Pair {
    fn serve(&mut self, queue: &mut ActiveQueue, memory: &GuestMemoryMmap) -> Result<bool, RingError> {
        let receives = queue.index == self.receive_queue();
        let shared = &*self.shared;
        let Some(tap) = shared.tap.queues().get(usize::from(self.number)) else { return Ok(false) };
        let (receiver, sender) = self.ends.get_or_insert_with(|| {
            let (mergeable, segmented) = shared.receives();
            let memory = Arc::new(memory.clone());
            (Receiver::new(Arc::clone(&memory), mergeable, segmented), Sender::new(GuestBuffers::new(memory)))
        });
        if receives {
            receiver.serve(&shared.id, tap, queue, memory)
        } else {
            sender.serve(&shared.id, tap, queue, memory)
        }
    }

    fn listens(&self, queue: u16) -> bool {
        let Some((receiver, sender)) = &self.ends else { return true };
        if queue == self.receive_queue() { receiver.starved } else { !sender.full }
    }

    fn waits(&self) -> Vec<Wait<'_>> {
        let Some(tap) = self.shared.tap.queues().get(usize::from(self.number)) else { return Vec::new() };
        let Some((receiver, sender)) = &self.ends else { return Vec::new() };
        let wait = |events, queue| Wait { fd: tap.as_fd(), events, queue };
        let receive = receiver.is_ready().then(|| wait(PollFlags::POLLIN, self.receive_queue()));
        let send = sender.full.then(|| wait(PollFlags::POLLOUT, self.receive_queue() + 1));
        receive.into_iter().chain(send).collect()
    }

    fn put_back(&mut self, queue: &mut ActiveQueue) {
        if queue.index == self.receive_queue()
            && let Some((mut receiver, _)) = self.ends.take()
        {
            receiver.put_back(queue);
        }
    }
}
