//! One request under way.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::operation::Operation;
use crate::devices::virtio::block::probe::Alignment;
use crate::devices::virtio::buffers::GuestBuffers;

/// The most that is copied at a time for direct I/O: what a guest asks for must not decide how much memory is taken.
const BOUNCE: usize = 256 << 10;

/// One request under way.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) operation: Operation,
    /// Whether the buffers lie so that direct I/O does not take them.
    bounced: bool,
    /// What lies right, made when first needed.
    bounce: Option<GuestBuffers>,
}

/// What is to be transferred next.
pub(super) struct Transfer<'a> {
    pub(super) write: bool,
    pub(super) durable: bool,
    pub(super) offset: u64,
    pub(super) pieces: &'a [libc::iovec],
}

impl Job {
    pub(super) fn new(operation: Operation, direct: Option<Alignment>) -> Self {
        let bounced = match (&operation, direct) {
            (Operation::Read { into: buffers, .. } | Operation::Write { from: buffers, .. }, Some(align)) => {
                !buffers.is_aligned(align.memory as usize, align.offset as usize)
            }
            _ => false,
        };
        Self { operation, bounced, bounce: None }
    }

    /// What is to be transferred next; `None` if this is no read or write. The pieces stay where they are until
    /// [`Self::advance`], wherever the job itself is moved.
    pub(super) fn transfer(&mut self) -> io::Result<Option<Transfer<'_>>> {
        let (write, durable, offset, buffers) = match &self.operation {
            Operation::Read { offset, into } => (false, false, *offset, into),
            Operation::Write { offset, from, durable } => (true, *durable, *offset, from),
            _ => return Ok(None),
        };
        let pieces = if self.bounced {
            let len = buffers.len().min(BOUNCE);
            let bounce = match &mut self.bounce {
                Some(bounce) => bounce,
                none => none.insert(GuestBuffers::new(pages(len)?)),
            };
            bounce.clear();
            bounce.push(GuestAddress(0), len as u32).map_err(io::Error::other)?;
            if write {
                buffers.copy_to(bounce);
            }
            bounce.pieces()
        } else {
            buffers.pieces()
        };
        Ok(Some(Transfer { write, durable, offset, pieces }))
    }

    /// Takes note that `n` bytes were transferred, and says whether that was all.
    pub(super) fn advance(&mut self, n: usize) -> io::Result<bool> {
        let write = matches!(self.operation, Operation::Write { .. });
        let (Operation::Read { offset, into: buffers } | Operation::Write { offset, from: buffers, .. }) =
            &mut self.operation
        else {
            return Ok(true);
        };
        if let (Some(bounce), false) = (&mut self.bounce, write) {
            bounce.clear();
            bounce.push(GuestAddress(0), n as u32).map_err(io::Error::other)?;
            bounce.copy_to(buffers);
        }
        if n == 0 && !buffers.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the image ends before its size"));
        }
        buffers.advance(n);
        *offset = offset.wrapping_add(n as u64);
        Ok(buffers.is_empty())
    }
}

/// Memory in whole pages of its own.
fn pages(len: usize) -> io::Result<Arc<GuestMemoryMmap>> {
    let range = (GuestAddress(0), len.next_multiple_of(4096));
    GuestMemoryMmap::from_ranges(&[range]).map(Arc::new).map_err(io::Error::other)
}

/// A request as its engine remembers it. The job is elsewhere while a thread has it.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) token: u64,
    pub(super) name: &'static str,
    pub(super) since: Instant,
    pub(super) job: Option<Job>,
}

impl Pending {
    pub(super) fn new(token: u64, name: &'static str, job: Option<Job>) -> Self {
        Self { token, name, since: Instant::now(), job }
    }
}
