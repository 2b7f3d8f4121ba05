//! A guest's request, read out of its descriptor chain (virtio 1.2, section 5.2.6).
//!
//! 1. A chain is a stream of bytes to read (header, then data) and a stream to write (data, then the status byte),
//!    however it is cut into descriptors (section 2.7.4).
//! 2. Everything in it is read once and checked before anything is done.
//! 3. A request that makes no sense gets a status that says so. Only a chain without a place for the status is an
//!    error: there the device can do nothing but ask for a reset.

use std::ops::Deref;
use std::sync::Arc;

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::config::MAX_SERIAL;
use super::engine::Operation;
use super::image::Image;
use crate::devices::virtio::buffers::{BufferError, GuestBuffers, MAX_PIECES};

/// The unit of every sector number, whatever the logical block is.
pub const SECTOR: u64 = 512;

/// Bytes of a request's header: type, reserved, sector.
const HEADER: usize = 16;

/// Bytes of a segment of a discard or of writing zeroes: sector, number of sectors, flags.
const SEGMENT: usize = 16;

/// What a disk can do, and what the driver has agreed to.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Its capacity in sectors.
    pub sectors: u64,
    /// Its logical block in bytes: offsets and lengths are multiples of it.
    pub block_size: u32,
    /// Whether writing is refused.
    pub read_only: bool,
    /// Whether VIRTIO_BLK_F_DISCARD is offered.
    pub discard: bool,
    /// Whether VIRTIO_BLK_F_WRITE_ZEROES is offered.
    pub write_zeroes: bool,
    /// Whether each write is on the medium before it is answered: VIRTIO_BLK_F_FLUSH was not negotiated.
    pub write_through: bool,
    /// What GET_ID answers.
    pub id: [u8; MAX_SERIAL],
}

impl Limits {
    /// The most segments in one discard or write-zeroes request (`max_discard_seg`, `max_write_zeroes_seg`).
    pub const MAX_SEGMENTS: u32 = 1;

    /// The most sectors in one discard (`max_discard_sectors`): 1 GiB.
    pub const MAX_DISCARD_SECTORS: u32 = 1 << 21;

    /// The most sectors that are zeroed at a time (`max_write_zeroes_sectors`): 32 MiB. Where the host has to write
    /// them all, it must be done before the guest can be stopped.
    pub const MAX_ZEROES_SECTORS: u32 = 1 << 16;

    /// What an image can do, all of it offered.
    pub fn of(image: &Image, serial: Option<&str>) -> Self {
        Self {
            sectors: image.sectors(),
            block_size: image.block_size(),
            read_only: image.is_read_only(),
            discard: image.can_discard(),
            write_zeroes: !image.is_read_only(),
            write_through: false,
            id: serial_id(serial.unwrap_or_default()),
        }
    }

    /// The bytes that `sectors` from `sector` are, if they are within the disk and whole blocks.
    fn bytes(&self, sector: u64, sectors: u64) -> Option<(u64, u64)> {
        let within = sector.checked_add(sectors).is_some_and(|end| end <= self.sectors);
        let (offset, len) = (sector.checked_mul(SECTOR)?, sectors.checked_mul(SECTOR)?);
        (within && (offset | len).is_multiple_of(u64::from(self.block_size))).then_some((offset, len))
    }
}

/// A serial number as GET_ID answers it: padded with zeroes, cut after 20 bytes.
pub fn serial_id(serial: &str) -> [u8; MAX_SERIAL] {
    let mut id = [0; MAX_SERIAL];
    id.iter_mut().zip(serial.bytes()).for_each(|(to, from)| *to = from);
    id
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// As asked.
    Ok = VIRTIO_BLK_S_OK as u8,
    /// It failed, or may not be.
    IoError = VIRTIO_BLK_S_IOERR as u8,
    /// The device does not know it.
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

/// Why a chain is no request at all. The device needs a reset.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Its descriptors lead nowhere: out of the table, in a circle, or to a table that is none.
    #[error("descriptor chain {head} is broken after {seen} descriptors")]
    Broken {
        /// Its head.
        head: u16,
        /// How many could be read.
        seen: usize,
    },
    /// A descriptor to be read follows one to be written (section 2.7.4.2).
    #[error("descriptor chain {head} has something to read after something to write")]
    Order {
        /// Its head.
        head: u16,
    },
    /// The header is not all there.
    #[error("descriptor chain {head} has a header of {found} bytes; expected {HEADER}")]
    Header {
        /// Its head.
        head: u16,
        /// How much of it is there.
        found: usize,
    },
    /// Nowhere to write the status to.
    #[error("descriptor chain {head} has no byte for the status")]
    NoStatus {
        /// Its head.
        head: u16,
    },
    /// The header or the status is not in RAM.
    #[error("descriptor chain {head}: {source}")]
    Memory {
        /// Its head.
        head: u16,
        /// Which bytes.
        source: BufferError,
    },
}

/// What is to be done for a request.
#[derive(Debug)]
pub enum Action {
    /// I/O, by an engine; then [`Reply::finish`].
    Submit(Operation),
    /// Nothing more: [`Reply::finish`] with this status and this many bytes written.
    Answer(Status, u32),
}

/// A request that was read and checked.
#[derive(Debug)]
pub struct Request {
    /// What is to be done.
    pub action: Action,
    /// Where the answer goes.
    pub reply: Reply,
}

/// Where the answer to a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// The chain's head, for the used ring.
    pub head: u16,
    /// Bytes that a request which goes well writes before the status.
    pub data: u32,
    status: GuestAddress,
    room: u32,
}

impl Reply {
    /// Writes the status, and says what the used ring is told was written: `written` bytes, and the status where
    /// there is no gap before it (section 2.7.8.2: all of that many first bytes were written).
    pub fn finish(
        &self,
        memory: &GuestMemoryMmap,
        status: Status,
        written: u32,
    ) -> Result<u32, RequestError> {
        memory.write_obj(status as u8, self.status).map_err(|_| RequestError::Memory {
            head: self.head,
            source: BufferError::Outside { addr: self.status.0, len: 1 },
        })?;
        Ok(if written == self.room { written.saturating_add(1) } else { written })
    }
}

/// A piece of a chain.
type Piece = (GuestAddress, u32);

impl Request {
    /// Reads a request. `memory` is the RAM that the chain is in.
    pub fn parse<M: Deref<Target = GuestMemoryMmap>>(
        chain: DescriptorChain<M>,
        memory: &Arc<GuestMemoryMmap>,
        limits: &Limits,
    ) -> Result<Self, RequestError> {
        let head = chain.head_index();
        let (mut readable, mut writable) = pieces(chain)?;
        let header = take_header(head, memory, &mut readable)?;
        let status = take_status(head, memory, &mut writable)?;
        let total = |pieces: &[Piece]| pieces.iter().map(|(_, len)| *len).sum();
        let room = total(&writable);
        let request = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let mut sector = [0; 8];
        sector.copy_from_slice(&header[8..]);
        let data = Data {
            sector: u64::from_le_bytes(sector),
            to_read: &readable,
            to_write: &writable,
            memory,
            limits,
        };
        let action = data.action(request).unwrap_or_else(|status| Action::Answer(status, 0));
        let data = if matches!(action, Action::Submit(Operation::Read { .. })) { room } else { 0 };
        Ok(Self { action, reply: Reply { head, data, status, room } })
    }
}

/// The chain's pieces to read and to write, without empty ones.
fn pieces<M: Deref<Target = GuestMemoryMmap>>(
    chain: DescriptorChain<M>,
) -> Result<(Vec<Piece>, Vec<Piece>), RequestError> {
    let head = chain.head_index();
    let (mut readable, mut writable): (Vec<Piece>, Vec<Piece>) = (Vec::new(), Vec::new());
    // The iterator ends without a word where a chain is broken: what it gave last then names a next one.
    let (mut seen, mut goes_on) = (0, true);
    // Bounded: an indirect table may hold 65535 descriptors. Header and status come on top of the data.
    for descriptor in chain.take(MAX_PIECES + 2) {
        (seen, goes_on) = (seen + 1, descriptor.has_next());
        if !descriptor.is_write_only() && !writable.is_empty() {
            return Err(RequestError::Order { head });
        }
        let pieces = if descriptor.is_write_only() { &mut writable } else { &mut readable };
        if descriptor.len() > 0 {
            pieces.push((descriptor.addr(), descriptor.len()));
        }
    }
    if goes_on { Err(RequestError::Broken { head, seen }) } else { Ok((readable, writable)) }
}

fn take_header(
    head: u16,
    memory: &Arc<GuestMemoryMmap>,
    readable: &mut Vec<Piece>,
) -> Result<[u8; HEADER], RequestError> {
    let mut header = GuestBuffers::new(memory.clone());
    while header.len() < HEADER {
        let Some((addr, len)) = readable.first_mut() else {
            return Err(RequestError::Header { head, found: header.len() });
        };
        let step = (*len).min((HEADER - header.len()) as u32);
        header.push(*addr, step).map_err(|source| RequestError::Memory { head, source })?;
        // `push` has seen that the piece does not wrap around.
        (addr.0, *len) = (addr.0.wrapping_add(u64::from(step)), *len - step);
        if *len == 0 {
            readable.remove(0);
        }
    }
    let mut bytes = [0; HEADER];
    header.copy_out(&mut bytes);
    Ok(bytes)
}

fn take_status(
    head: u16,
    memory: &Arc<GuestMemoryMmap>,
    writable: &mut Vec<Piece>,
) -> Result<GuestAddress, RequestError> {
    let Some((addr, len)) = writable.last_mut() else { return Err(RequestError::NoStatus { head }) };
    *len -= 1;
    let outside = BufferError::Outside { addr: addr.0, len: *len };
    let status = addr.0.checked_add(u64::from(*len)).map(GuestAddress).ok_or(outside);
    if *len == 0 {
        writable.pop();
    }
    let checked = status.and_then(|status| {
        GuestBuffers::new(memory.clone()).push(status, 1)?;
        Ok(status)
    });
    checked.map_err(|source| RequestError::Memory { head, source })
}

/// A request between its header and its status.
struct Data<'a> {
    sector: u64,
    to_read: &'a [Piece],
    to_write: &'a [Piece],
    memory: &'a Arc<GuestMemoryMmap>,
    limits: &'a Limits,
}

impl Data<'_> {
    fn action(&self, request: u32) -> Result<Action, Status> {
        match request {
            VIRTIO_BLK_T_IN => {
                let (offset, into) = self.transfer(self.to_write)?;
                Ok(Action::Submit(Operation::Read { offset, into }))
            }
            VIRTIO_BLK_T_OUT => {
                self.writing()?;
                let (offset, from) = self.transfer(self.to_read)?;
                let durable = self.limits.write_through;
                Ok(Action::Submit(Operation::Write { offset, from, durable }))
            }
            VIRTIO_BLK_T_FLUSH if self.limits.read_only => Ok(Action::Answer(Status::Ok, 0)),
            VIRTIO_BLK_T_FLUSH => Ok(Action::Submit(Operation::Flush)),
            VIRTIO_BLK_T_GET_ID => {
                let written = self.buffers(self.to_write)?.copy_in(&self.limits.id);
                Ok(Action::Answer(Status::Ok, written as u32))
            }
            VIRTIO_BLK_T_DISCARD if self.limits.discard => {
                let (offset, len, flags) = self.segment(Limits::MAX_DISCARD_SECTORS)?;
                if flags != 0 {
                    return Err(Status::Unsupported);
                }
                Ok(Action::Submit(Operation::Discard { offset, len }))
            }
            VIRTIO_BLK_T_WRITE_ZEROES if self.limits.write_zeroes => {
                let (offset, len, flags) = self.segment(Limits::MAX_ZEROES_SECTORS)?;
                if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
                    return Err(Status::Unsupported);
                }
                let unmap = flags != 0;
                let durable = self.limits.write_through;
                Ok(Action::Submit(Operation::WriteZeroes { offset, len, unmap, durable }))
            }
            _ => Err(Status::Unsupported),
        }
    }

    fn writing(&self) -> Result<(), Status> {
        if self.limits.read_only { Err(Status::IoError) } else { Ok(()) }
    }

    fn buffers(&self, pieces: &[Piece]) -> Result<GuestBuffers, Status> {
        let mut buffers = GuestBuffers::new(self.memory.clone());
        for (addr, len) in pieces {
            buffers.push(*addr, *len).map_err(|_| Status::IoError)?;
        }
        Ok(buffers)
    }

    /// The data of a read or a write, and where on the disk it is.
    fn transfer(&self, pieces: &[Piece]) -> Result<(u64, GuestBuffers), Status> {
        let buffers = self.buffers(pieces)?;
        let len = buffers.len() as u64;
        let range = self.limits.bytes(self.sector, len / SECTOR).filter(|_| len.is_multiple_of(SECTOR));
        range.map(|(offset, _)| (offset, buffers)).ok_or(Status::IoError)
    }

    /// The one segment of a discard or of writing zeroes, of `most` sectors: offset, bytes, flags.
    fn segment(&self, most: u32) -> Result<(u64, u64, u32), Status> {
        self.writing()?;
        let buffers = self.buffers(self.to_read)?;
        let mut bytes = [0; SEGMENT];
        if buffers.len() != SEGMENT || buffers.copy_out(&mut bytes) != SEGMENT {
            return Err(Status::IoError);
        }
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (sector, sectors, flags) = (u64::from(word(0)) | u64::from(word(4)) << 32, word(8), word(12));
        if sectors > most {
            return Err(Status::IoError);
        }
        let (offset, len) = self.limits.bytes(sector, u64::from(sectors)).ok_or(Status::IoError)?;
        Ok((offset, len, flags))
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
