//! Packets from the tap to the guest.
//!
//! 1. Buffers are taken from the driver ahead of the packet, as many as the longest needs, and kept over packets: what is
//!    not used goes back at a stop.
//! 2. A packet that finds no room stays in the tap.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use super::tap::{HEADER, TapQueue};
use crate::devices::virtio::buffers::GuestBuffers;
use crate::devices::virtio::{ActiveQueue, RingError};
use virtio_queue::QueueT;

/// Bytes of the longest frame without segmentation: Ethernet's header, a tag, and its usual load.
const FRAME: usize = 14 + 4 + 1500;
/// Bytes of the longest that segmentation leaves whole.
const SEGMENTED: usize = 14 + 4 + (64 << 10);
/// Where in the header `num_buffers` is.
const NUM_BUFFERS: usize = 10;
/// Packets that are received in one look.
const MOST: usize = 64;

/// What a queue for packets to the guest has taken from its driver.
pub(super) struct Receiver {
    buffers: GuestBuffers,
    /// The chains that the buffers are of: their heads and lengths.
    chains: VecDeque<(u16, usize)>,
    /// Whether a packet may go over several chains (`VIRTIO_NET_F_MRG_RXBUF`).
    mergeable: bool,
    longest: usize,
    /// There is no room for a packet; the driver says when there may be.
    pub(super) starved: bool,
    /// The tap is gone.
    gone: bool,
}

impl Receiver {
    /// For a driver that merges buffers, or not, and that takes segmented packets whole, or not.
    pub(super) fn new(memory: Arc<GuestMemoryMmap>, mergeable: bool, segmented: bool) -> Self {
        let longest = HEADER + if segmented { SEGMENTED } else { FRAME };
        let (buffers, chains) = (GuestBuffers::new(memory), VecDeque::new());
        Self { buffers, chains, mergeable, longest, starved: false, gone: false }
    }

    /// Whether the tap is to be watched.
    pub(super) fn is_ready(&self) -> bool {
        !self.starved && !self.gone
    }

    /// Gives the guest what the tap has.
    pub(super) fn serve(
        &mut self,
        id: &str,
        tap: &TapQueue,
        queue: &mut ActiveQueue,
        memory: &GuestMemoryMmap,
    ) -> Result<bool, RingError> {
        for _ in 0..MOST {
            self.starved = !self.prepare(queue, memory)?;
            if !self.is_ready() {
                return Ok(false);
            }
            let got = if self.mergeable {
                tap.receive(&self.buffers)
            } else {
                let first = self.chains.front().map_or(0, |(_, length)| *length);
                tap.receive(&self.buffers.first(first))
            };
            match got {
                Ok(Some(length)) => self.give(queue, memory, length)?,
                Ok(None) => return Ok(false),
                Err(error) => {
                    self.gone = is_gone(&error);
                    tracing::warn!("{id}: receiving from its tap: {error}");
                    return Ok(false);
                }
            }
        }
        // The tap is looked at again at once if there is more.
        Ok(false)
    }

    /// Takes buffers until the longest packet has room. False if the driver has not given so many.
    fn prepare(&mut self, queue: &mut ActiveQueue, memory: &GuestMemoryMmap) -> Result<bool, RingError> {
        while !self.has_room(usize::MAX)
            && let Some(chain) = queue.pop(memory)?
        {
            let (head, before) = (chain.head_index(), self.buffers.len());
            self.buffers.gather(chain.writable()).map_err(|error| queue.broken(error))?;
            let length = self.buffers.len() - before;
            if length < HEADER {
                return Err(queue.broken(format!("a buffer of {length} bytes for a packet")));
            }
            self.chains.push_back((head, length));
        }
        Ok(self.has_room(usize::from(queue.ring.size())))
    }

    /// Whether the longest packet has room. A short ring may never have so much: a quarter of what it can hold is enough.
    fn has_room(&self, ring: usize) -> bool {
        let Some((_, first)) = self.chains.front() else { return false };
        !self.mergeable || self.buffers.len() >= self.longest.min((ring / 4).saturating_mul(*first))
    }

    /// Gives the driver a packet that lies in the first buffers.
    fn give(
        &mut self,
        queue: &mut ActiveQueue,
        memory: &GuestMemoryMmap,
        length: usize,
    ) -> Result<(), RingError> {
        let used = self.chains.iter().scan(length, |left, (_, room)| {
            let here = (*left).min(*room);
            *left -= here;
            (here > 0).then_some(here as u32)
        });
        let used: Vec<u32> = used.collect();
        let mut header = [0; HEADER];
        self.buffers.copy_out(&mut header);
        header[NUM_BUFFERS..].copy_from_slice(&(used.len() as u16).to_le_bytes());
        self.buffers.copy_in(&header);
        for written in used {
            let Some((head, room)) = self.chains.pop_front() else { break };
            self.buffers.advance(room);
            queue.push(memory, head, written)?;
        }
        Ok(())
    }

    /// Puts back what no packet has used.
    pub(super) fn put_back(&mut self, queue: &mut ActiveQueue) {
        self.buffers.clear();
        self.chains.drain(..).for_each(|_| queue.unpop());
    }
}

/// Whether an error says that the interface was deleted.
fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBADFD)
}
