//! Moves bytes and control messages between queues and ports. Runs on the device's thread.

use std::sync::Arc;

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestMemoryMmap};

use super::control::{self, Facts, MESSAGE, Message};
use super::device::Shared;
use super::port::Port;
use crate::devices::virtio::{ActiveQueue, Handler, RingError};

/// The driver's queue for control messages to it, and that for its own.
pub(super) const CONTROL_RECEIVE: u16 = 2;
const CONTROL_TRANSMIT: u16 = 3;

/// Bytes that are moved at once.
const CHUNK: usize = 4096;
/// Chains that are served in one look at a queue.
const MOST: usize = 64;
/// The most bytes of one chain. A driver that sends more than fits any buffer of its own makes the same RAM be read over and
/// over, and no stop would come in between.
const MOST_BYTES: usize = 1 << 20;

/// What the device's thread does with a queue.
pub(super) struct Streams(pub(super) Arc<Shared>);

impl Handler for Streams {
    fn serve(&mut self, queue: &mut ActiveQueue, memory: &GuestMemoryMmap) -> Result<bool, RingError> {
        for _ in 0..MOST {
            let served = match (queue.index, self.0.port_of(queue.index)) {
                (CONTROL_RECEIVE, _) => self.tell(queue, memory)?,
                (CONTROL_TRANSMIT, _) => self.hear(queue, memory)?,
                (index, Some(port)) if index == port.receive_queue() => to_guest(port, queue, memory)?,
                (_, Some(port)) => from_guest(port, queue, memory)?,
                (_, None) => false,
            };
            if !served {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Streams {
    /// Tells the driver the next fact that it does not know.
    fn tell(&self, queue: &mut ActiveQueue, memory: &GuestMemoryMmap) -> Result<bool, RingError> {
        let due = |port: &&Port| port.lock().due.next().is_some();
        let Some(port) = self.0.ports.iter().find(due) else { return Ok(false) };
        let Some(chain) = queue.pop(memory)? else { return Ok(false) };
        let mut stream = port.lock();
        let Some(fact) = stream.due.next() else { return Ok(false) };
        stream.due -= fact;
        let message = fact.message(port.number, port.name.as_deref(), stream.told_connected);
        let head = chain.head_index();
        let written = write(chain, &message, memory).map_err(|why| queue.broken(why))?;
        queue.push(memory, head, written as u32)?;
        Ok(true)
    }

    /// Hears what the driver says.
    fn hear(&self, queue: &mut ActiveQueue, memory: &GuestMemoryMmap) -> Result<bool, RingError> {
        let Some(chain) = queue.pop(memory)? else { return Ok(false) };
        let head = chain.head_index();
        let mut bytes = Vec::with_capacity(MESSAGE);
        read(chain, MESSAGE, memory, |piece| bytes.extend_from_slice(piece))
            .map_err(|why| queue.broken(why))?;
        queue.push(memory, head, 0)?;
        if let Some(message) = Message::from_bytes(&bytes) {
            self.obey(message);
        }
        Ok(true)
    }

    fn obey(&self, message: Message) {
        let Message { port, event, value } = message;
        if event == control::DEVICE_READY {
            if value == 1 {
                self.0.ports.iter().for_each(|port| port.lock().due |= Facts::PRESENCE);
                self.0.wake(CONTROL_RECEIVE);
            }
            return;
        }
        let Some(port) = self.0.ports.iter().find(|known| known.number == port) else { return };
        let mut stream = port.lock();
        match (event, value) {
            (control::PORT_READY, 1) => {
                stream.ready = true;
                stream.due |= if port.name.is_some() { Facts::NAME } else { Facts::CONSOLE };
                stream.due |= Facts::CONNECTION;
                stream.told_connected = stream.chardev.is_connected();
                self.0.wake(CONTROL_RECEIVE);
            }
            (control::PORT_OPEN, value) => {
                stream.open = value == 1;
                self.0.wake(port.receive_queue());
            }
            _ => {}
        }
    }
}

/// Gives the guest what the back end has, as far as it has a buffer for it.
fn to_guest(port: &Port, queue: &mut ActiveQueue, memory: &GuestMemoryMmap) -> Result<bool, RingError> {
    let mut stream = port.lock();
    if !stream.open {
        return Ok(false);
    }
    let Some(chain) = queue.pop(memory)? else { return Ok(false) };
    let head = chain.head_index();
    let room = chain.clone().writable().map(|buffer| buffer.len() as usize).fold(0, usize::saturating_add);
    if room == 0 {
        queue.push(memory, head, 0)?;
        return Ok(true);
    }
    let mut bytes = [0; CHUNK];
    let length = stream.chardev.read(&mut bytes[..room.min(CHUNK)]);
    if length == 0 {
        // The buffer stays the driver's, for when there is something.
        queue.unpop();
        if stream.chardev.has_ended() {
            stream.chardev.kick();
        }
        return Ok(false);
    }
    let written = write(chain, &bytes[..length], memory).map_err(|why| queue.broken(why))?;
    queue.push(memory, head, written as u32)?;
    Ok(true)
}

/// Takes what the guest sends, as far as the back end has room for it.
fn from_guest(port: &Port, queue: &mut ActiveQueue, memory: &GuestMemoryMmap) -> Result<bool, RingError> {
    let mut stream = port.lock();
    let Some(chain) = queue.pop(memory)? else { return Ok(false) };
    let head = chain.head_index();
    let length = chain.clone().readable().map(|buffer| buffer.len() as usize).fold(0, usize::saturating_add);
    if length > MOST_BYTES {
        return Err(queue.broken(format!("a chain of {length} bytes; expected {MOST_BYTES} at most")));
    }
    if !stream.chardev.takes(length) {
        // It stays in the queue; the back end's wake leads here again.
        queue.unpop();
        return Ok(false);
    }
    read(chain, length, memory, |piece| stream.chardev.write(piece)).map_err(|why| queue.broken(why))?;
    queue.push(memory, head, 0)?;
    Ok(true)
}

/// Writes bytes to what a chain has to be written, as far as they fit.
fn write(
    chain: DescriptorChain<&GuestMemoryMmap>,
    mut bytes: &[u8],
    memory: &GuestMemoryMmap,
) -> Result<usize, String> {
    let all = bytes.len();
    for buffer in chain.writable() {
        let (now, later) = bytes.split_at(bytes.len().min(buffer.len() as usize));
        memory.write_slice(now, buffer.addr()).map_err(|error| error.to_string())?;
        bytes = later;
    }
    Ok(all - bytes.len())
}

/// Reads what a chain has to be read, piece by piece, up to so many bytes.
fn read(
    chain: DescriptorChain<&GuestMemoryMmap>,
    mut most: usize,
    memory: &GuestMemoryMmap,
    mut take: impl FnMut(&[u8]),
) -> Result<(), String> {
    let mut piece = [0; CHUNK];
    for buffer in chain.readable() {
        let (mut at, mut left) = (buffer.addr(), most.min(buffer.len() as usize));
        most -= left;
        while left > 0 {
            let now = left.min(CHUNK);
            memory.read_slice(&mut piece[..now], at).map_err(|error| error.to_string())?;
            take(&piece[..now]);
            left -= now;
            at = vm_memory::GuestAddress(at.0.wrapping_add(now as u64));
        }
    }
    Ok(())
}
