//! What the driver asks of the device itself (virtio 1.2, 5.1.6.5).

use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use super::device::Shared;
use crate::devices::virtio::buffers::GuestBuffers;
use crate::devices::virtio::{ActiveQueue, Handler, RingError};

/// Class and command: the guest has announced itself.
const ANNOUNCE_ACK: [u8; 2] = [3, 0];
/// Class and command: how many pairs of queues are used.
const MQ_VQ_PAIRS_SET: [u8; 2] = [4, 0];

const OK: u8 = 0;
const ERR: u8 = 1;

/// Commands that are answered in one look.
const MOST: usize = 16;

/// What the control queue's thread does.
pub(super) struct Control(pub(super) Arc<Shared>);

impl Handler for Control {
    fn serve(&mut self, queue: &mut ActiveQueue, memory: &GuestMemoryMmap) -> Result<bool, RingError> {
        for _ in 0..MOST {
            let Some(chain) = queue.pop(memory)? else { return Ok(false) };
            let head = chain.head_index();
            let gather = |writable: bool| {
                let mut buffers = GuestBuffers::new(Arc::new(memory.clone()));
                let wanted = chain.clone().filter(|descriptor| descriptor.is_write_only() == writable);
                buffers.gather(wanted).map_err(|error| queue.broken(error))?;
                Ok(buffers)
            };
            let (command, answer) = (gather(false)?, gather(true)?);
            let mut bytes = [0; 4];
            let length = command.copy_out(&mut bytes);
            let ack = self.obey(&bytes[..length]);
            let written = answer.copy_in(&[ack]);
            queue.push(memory, head, written as u32)?;
        }
        Ok(true)
    }
}

impl Control {
    fn obey(&self, command: &[u8]) -> u8 {
        let done = match command {
            [class, command, ..] if [*class, *command] == ANNOUNCE_ACK => {
                self.0.announced();
                true
            }
            [class, command, low, high] if [*class, *command] == MQ_VQ_PAIRS_SET => {
                self.0.use_pairs(u16::from_le_bytes([*low, *high]))
            }
            _ => false,
        };
        if done { OK } else { ERR }
    }
}
