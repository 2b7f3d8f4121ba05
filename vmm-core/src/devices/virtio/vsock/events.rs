//! What the guest is told on the event queue.

use std::sync::atomic::Ordering;

use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestMemoryMmap};

use crate::devices::virtio::{ActiveQueue, RingError};

/// The event queue's number.
pub(super) const EVENTS: u16 = 2;
/// All connections are closed; the guest's address is to be read again (virtio 1.2, 5.10.6.7).
const TRANSPORT_RESET: u32 = 0;

/// Tells the guest that its connections are closed; gives the index of the available ring at that time. None when the
/// driver has given no buffer for it.
pub(super) fn transport_reset(
    queue: &mut ActiveQueue,
    memory: &GuestMemoryMmap,
) -> Result<Option<u16>, RingError> {
    let Some(chain) = queue.pop(memory)? else { return Ok(None) };
    let head = chain.head_index();
    let event = TRANSPORT_RESET.to_le_bytes();
    let buffer = chain.writable().find(|buffer| buffer.len() as usize >= event.len());
    let buffer = buffer.ok_or_else(|| queue.broken("no room for an event"))?;
    memory.write_slice(&event, buffer.addr()).map_err(|error| queue.broken(error))?;
    let available = queue.ring.avail_idx(memory, Ordering::Acquire).map_err(|error| queue.broken(error))?;
    queue.push(memory, head, event.len() as u32)?;
    queue.notify(memory)?;
    Ok(Some(available.0))
}
