//! The device.

use std::time::Instant;

use vm_memory::{Bytes, GuestMemoryMmap};

use crate::devices::DeviceError;
use crate::devices::virtio::{ActiveQueue, DeviceKind, Handler, RingError, Run, VirtioDevice, Worker};

/// virtio's id of entropy devices, and PCI's class of what has no other.
const KIND: DeviceKind = DeviceKind { id: 4, class: 0x00_ff00 };
/// Descriptors of its queue.
const QUEUE_SIZES: [u16; 1] = [64];
/// The most bytes of a request that are filled; the driver asks again for more.
pub const MAX_REQUEST: usize = 64 << 10;
/// Bytes that are filled at once.
const CHUNK: usize = 256;

/// The entropy device.
pub struct Rng {
    id: String,
    worker: Worker,
}

impl Rng {
    /// A device after reset.
    pub fn new(id: &str) -> Result<Self, DeviceError> {
        // Waits for the host's generator now, so that no request does later.
        fill(&mut [0; 1]).map_err(DeviceError::io(id, "getrandom"))?;
        Ok(Self { id: id.to_owned(), worker: Worker::spawn(id, Filler)? })
    }
}

impl VirtioDevice for Rng {
    fn id(&self) -> &str {
        &self.id
    }

    fn kind(&self) -> DeviceKind {
        KIND
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn start(&self, run: Run) -> Result<(), DeviceError> {
        self.worker.start(run);
        Ok(())
    }

    fn stop(&self, deadline: Instant) -> Result<Vec<ActiveQueue>, DeviceError> {
        self.worker.stop(deadline)
    }
}

struct Filler;

impl Handler for Filler {
    fn serve(&mut self, queue: &mut ActiveQueue, memory: &GuestMemoryMmap) -> Result<bool, RingError> {
        for _ in 0..QUEUE_SIZES[0] {
            let Some(chain) = queue.pop(memory)? else { return Ok(false) };
            let (head, mut written) = (chain.head_index(), 0);
            for buffer in chain.writable() {
                let mut at = 0;
                while at < buffer.len() as usize && written < MAX_REQUEST {
                    let mut bytes = [0; CHUNK];
                    let some = (buffer.len() as usize - at).min(CHUNK).min(MAX_REQUEST - written);
                    let wrong = |why: String| RingError { queue: queue.index, why };
                    fill(&mut bytes[..some]).map_err(|error| wrong(format!("getrandom: {error}")))?;
                    let address = buffer.addr().0.checked_add(at as u64).map(vm_memory::GuestAddress);
                    let address = address.ok_or_else(|| wrong("a buffer beyond all addresses".into()))?;
                    memory.write_slice(&bytes[..some], address).map_err(|error| wrong(error.to_string()))?;
                    at += some;
                    written += some;
                }
            }
            queue.push(memory, head, written as u32)?;
        }
        Ok(true)
    }
}

/// Fills bytes from the host's generator.
fn fill(mut bytes: &mut [u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        // SAFETY: the buffer is valid for writes of its length.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        if got < 0 {
            let error = std::io::Error::last_os_error();
            if error.kind() != std::io::ErrorKind::Interrupted {
                return Err(error);
            }
            continue;
        }
        bytes = &mut bytes[got as usize..];
    }
    Ok(())
}
