//! A request's buffers in guest RAM, as the kernel takes them (`struct iovec`).
//!
//! 1. Every byte of every buffer was checked to be in guest RAM when it was pushed.
//! 2. The RAM stays mapped for as long as the buffers live: they hold on to it.
//! 3. The guest can write there at any time; nothing here makes a reference to guest RAM.

use std::sync::Arc;

use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

/// The most pieces that one call takes (`UIO_MAXIOV`).
pub const MAX_PIECES: usize = 1024;

/// Why a buffer was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BufferError {
    /// Some of it is not RAM.
    #[error("{len} bytes at {addr:#x} are not all in RAM")]
    Outside {
        /// Its guest address.
        addr: u64,
        /// Its length.
        len: u32,
    },
    /// The kernel does not take so many pieces.
    #[error("more than {MAX_PIECES} pieces")]
    TooMany,
}

/// Buffers in guest RAM, one after the other.
#[derive(Debug)]
pub struct GuestBuffers {
    memory: Arc<GuestMemoryMmap>,
    pieces: Vec<libc::iovec>,
    /// Pieces before this one have been consumed.
    first: usize,
    len: usize,
}

// SAFETY: the pointers are into `memory`, which is `Send + Sync` and which this value keeps mapped; nothing here
// dereferences them but by volatile copies, that the guest may race with anyway.
unsafe impl Send for GuestBuffers {}
// SAFETY: as above; shared access only copies.
unsafe impl Sync for GuestBuffers {}

impl GuestBuffers {
    /// None yet.
    pub fn new(memory: Arc<GuestMemoryMmap>) -> Self {
        Self { memory, pieces: Vec::new(), first: 0, len: 0 }
    }

    /// Adds `len` bytes of RAM at `addr`. A length of 0 adds nothing. After an error the buffers are as before.
    pub fn push(&mut self, addr: GuestAddress, len: u32) -> Result<(), BufferError> {
        let before = self.pieces.len();
        let refused = |pieces: &mut Vec<libc::iovec>, error| {
            pieces.truncate(before);
            Err(error)
        };
        for slice in self.memory.get_slices(addr, len as usize) {
            let Ok(slice) = slice else {
                return refused(&mut self.pieces, BufferError::Outside { addr: addr.0, len });
            };
            if self.pieces.len() == MAX_PIECES {
                return refused(&mut self.pieces, BufferError::TooMany);
            }
            let iov_base = slice.ptr_guard_mut().as_ptr().cast();
            self.pieces.push(libc::iovec { iov_base, iov_len: slice.len() });
        }
        self.len += len as usize;
        Ok(())
    }

    /// Adds the buffers of these descriptors, one after the other. After an error some of them are there.
    pub fn gather(&mut self, descriptors: impl IntoIterator<Item = Descriptor>) -> Result<(), BufferError> {
        descriptors.into_iter().try_for_each(|descriptor| self.push(descriptor.addr(), descriptor.len()))
    }

    /// Empties them for the next request, keeping the room.
    pub fn clear(&mut self) {
        self.pieces.clear();
        (self.first, self.len) = (0, 0);
    }

    /// Bytes that are left.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first `n` bytes, at most all, as buffers of their own.
    #[must_use]
    pub fn first(&self, n: usize) -> Self {
        let mut left = n.min(self.len);
        let len = left;
        let cut = |piece: &libc::iovec| {
            let iov_len = piece.iov_len.min(left);
            left -= iov_len;
            (iov_len > 0).then_some(libc::iovec { iov_len, ..*piece })
        };
        let pieces = self.pieces().iter().map_while(cut).collect();
        Self { memory: Arc::clone(&self.memory), pieces, first: 0, len }
    }

    /// What is left, for the kernel. The pieces stay where they are until the next call that takes `&mut self`.
    pub fn pieces(&self) -> &[libc::iovec] {
        &self.pieces[self.first..]
    }

    /// Whether the kernel takes every piece for direct I/O.
    pub fn is_aligned(&self, address: usize, length: usize) -> bool {
        let aligned = |piece: &libc::iovec| {
            (piece.iov_base as usize).is_multiple_of(address) && piece.iov_len.is_multiple_of(length)
        };
        self.pieces().iter().all(aligned)
    }

    /// Lets go of the first `n` bytes, at most all.
    pub fn advance(&mut self, n: usize) {
        let mut n = n.min(self.len);
        self.len -= n;
        while let Some(piece) = self.pieces.get_mut(self.first).filter(|piece| n > 0 || piece.iov_len == 0) {
            let step = n.min(piece.iov_len);
            piece.iov_base = piece.iov_base.wrapping_byte_add(step);
            piece.iov_len -= step;
            n -= step;
            if piece.iov_len == 0 {
                self.first += 1;
            }
        }
        // What was consumed makes room, now and then: not each time, for what it costs.
        if self.first > MAX_PIECES / 4 || self.first == self.pieces.len() {
            self.pieces.drain(..std::mem::take(&mut self.first));
        }
    }

    /// Copies the first bytes out, at most as many as are left; says how many.
    pub fn copy_out(&self, to: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in self.slices() {
            done += slice.copy_to(&mut to[done..]);
        }
        done
    }

    /// Copies over the first bytes, at most as many as are left; says how many.
    pub fn copy_in(&self, from: &[u8]) -> usize {
        let mut done = 0;
        for slice in self.slices() {
            let n = slice.len().min(from.len() - done);
            slice.copy_from(&from[done..done + n]);
            done += n;
        }
        done
    }

    /// Copies the first bytes over those of `to`, as many as both have; says how many.
    pub fn copy_to(&self, to: &Self) -> usize {
        let mut done = 0;
        let mut targets = to.slices();
        let mut room = targets.next();
        for mut slice in self.slices() {
            while let Some(target) = room.filter(|_| !slice.is_empty()) {
                let n = slice.len().min(target.len());
                slice.copy_to_volatile_slice(target);
                done += n;
                // Neither offset is past its slice's end.
                let (Ok(rest), Ok(left)) = (slice.offset(n), target.offset(n)) else { return done };
                slice = rest;
                room = if left.is_empty() { targets.next() } else { Some(left) };
            }
        }
        done
    }

    fn slices(&self) -> impl Iterator<Item = VolatileSlice<'_>> {
        self.pieces().iter().map(|piece| {
            // SAFETY: `push` took the piece from a slice of `memory`, which is mapped for as long as `self` lives,
            // and `advance` only shortens it.
            unsafe { VolatileSlice::new(piece.iov_base.cast(), piece.iov_len) }
        })
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    fn memory() -> Arc<GuestMemoryMmap> {
        let ranges =
            [(GuestAddress(0), 0x2000), (GuestAddress(0x2000), 0x1000), (GuestAddress(0x10000), 0x1000)];
        Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap())
    }

    #[test]
    fn a_buffer_outside_of_ram_is_refused_and_leaves_nothing_behind() {
        let mut buffers = GuestBuffers::new(memory());
        buffers.push(GuestAddress(0x100), 16).unwrap();
        for (addr, len) in [(0x2fff, 2), (0x3000, 1), (u64::MAX, 2), (0x10000, u32::MAX)] {
            assert_eq!(buffers.push(GuestAddress(addr), len), Err(BufferError::Outside { addr, len }));
        }
        assert_eq!((buffers.len(), buffers.pieces().len()), (16, 1));
    }

    #[test]
    fn a_buffer_over_two_regions_is_two_pieces() {
        let memory = memory();
        let mut buffers = GuestBuffers::new(memory.clone());
        buffers.push(GuestAddress(0x1ffe), 4).unwrap();
        assert_eq!(buffers.copy_in(b"abcdef"), 4);
        assert_eq!(buffers.pieces().len(), 2);
        assert_eq!(memory.read_obj::<[u8; 4]>(GuestAddress(0x1ffe)).unwrap(), *b"abcd");
    }

    #[test]
    fn advancing_drops_whole_and_partial_pieces() {
        let memory = memory();
        memory.write_slice(b"0123456789", GuestAddress(0)).unwrap();
        let mut buffers = GuestBuffers::new(memory);
        for at in [0, 3, 6] {
            buffers.push(GuestAddress(at), 3).unwrap();
        }
        for (step, left) in [(0, "012345678"), (3, "345678"), (1, "45678"), (4, "8"), (9, "")] {
            buffers.advance(step);
            let mut seen = [0; 16];
            let n = buffers.copy_out(&mut seen);
            assert_eq!(std::str::from_utf8(&seen[..n]).unwrap(), left);
            assert_eq!(buffers.len(), left.len());
        }
        assert!(buffers.pieces().is_empty());
    }

    #[test]
    fn buffers_that_are_cut_differently_are_copied_to_each_other() {
        let memory = memory();
        memory.write_slice(b"0123456789", GuestAddress(0)).unwrap();
        let cut = |at: u64, lengths: &[u32]| {
            let mut buffers = GuestBuffers::new(memory.clone());
            for (i, len) in lengths.iter().enumerate() {
                buffers.push(GuestAddress(at + 0x100 * i as u64), *len).unwrap();
            }
            buffers
        };
        let (from, to) = (cut(0, &[10]), cut(0x1000, &[3, 1, 4]));
        assert_eq!(from.copy_to(&to), 8);
        let mut seen = [0; 8];
        to.copy_out(&mut seen);
        assert_eq!(&seen, b"01234567");
        assert_eq!(to.copy_to(&cut(0x2000, &[2, 2])), 4);
        assert_eq!(memory.read_obj::<[u8; 2]>(GuestAddress(0x2100)).unwrap(), *b"23");
    }

    #[test]
    fn more_pieces_than_the_kernel_takes_are_refused() {
        let mut buffers = GuestBuffers::new(memory());
        for _ in 0..MAX_PIECES {
            buffers.push(GuestAddress(0), 1).unwrap();
        }
        assert_eq!(buffers.push(GuestAddress(0), 1), Err(BufferError::TooMany));
    }
}
