//! Packets from the guest to the tap.

use std::io;

use vm_memory::GuestMemoryMmap;

use super::tap::{HEADER, TapQueue};
use crate::devices::virtio::buffers::GuestBuffers;
use crate::devices::virtio::{ActiveQueue, RingError};

/// The most bytes of a packet: what IP can have, with the headers before it.
const LONGEST: usize = HEADER + 18 + (64 << 10);
/// Bytes of one look that are part of a stream: the next packets are given a moment to come together, or each would have its
/// own notification and its own interrupt.
const STREAM: usize = 16 << 10;
/// Packets that are sent in one look.
const MOST: usize = 64;

/// A queue for packets from the guest.
pub(super) struct Sender {
    buffers: GuestBuffers,
    /// The tap has no room; it says when there may be.
    pub(super) full: bool,
    /// The last packet could not be sent, and that was said.
    failing: bool,
    /// Bytes that were sent in the last look, if it emptied the queue.
    sent: usize,
}

impl Sender {
    pub(super) fn new(buffers: GuestBuffers) -> Self {
        Self { buffers, full: false, failing: false, sent: 0 }
    }

    /// Sends what the guest has. A packet that the tap refuses is lost, as on any wire.
    pub(super) fn serve(
        &mut self,
        id: &str,
        tap: &TapQueue,
        queue: &mut ActiveQueue,
        memory: &GuestMemoryMmap,
    ) -> Result<bool, RingError> {
        self.full = false;
        if std::mem::take(&mut self.sent) >= STREAM {
            std::thread::yield_now();
        }
        for _ in 0..MOST {
            let Some(chain) = queue.pop(memory)? else { return Ok(false) };
            let head = chain.head_index();
            self.buffers.clear();
            self.buffers.gather(chain.readable()).map_err(|error| queue.broken(error))?;
            let sent = match self.buffers.len() {
                HEADER..=LONGEST => tap.send(&self.buffers),
                length => Err(io::Error::other(format!("a packet of {length} bytes"))),
            };
            match sent {
                Ok(None) => {
                    queue.unpop();
                    self.full = true;
                    return Ok(false);
                }
                Ok(Some(sent)) => {
                    self.sent += sent;
                    self.failing = false;
                }
                Err(error) if !self.failing => {
                    tracing::warn!("{id}: packets from the guest are lost: {error}");
                    self.failing = true;
                }
                Err(_) => {}
            }
            queue.push(memory, head, 0)?;
        }
        // The next packets are there.
        self.sent = 0;
        Ok(true)
    }
}
