//! Frames: what crosses the socket, byte by byte.
//!
//! 1. A frame is a header of 24 bytes, then a payload; descriptors ride on the header's first byte.
//! 2. A header is checked (magic, checksum, bounds) before its payload is read, a payload's checksum before it is decoded.
//! 3. Memory for a payload grows with the bytes that have arrived, not with the length that was announced.
//!
//! ```text
//!  0  magic "CPRT"      4  kind u16   6  descriptors u16
//!  8  payload length u32               12  payload CRC-32 u32
//! 16  sequence number u32              20  CRC-32 of the 20 bytes before u32      (all little-endian)
//! ```

use std::os::fd::OwnedFd;

use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The bytes that open every frame.
pub const MAGIC: [u8; 4] = *b"CPRT";
/// The longest payload. A guest of 128 vCPUs has less than 2 MiB of state.
pub const MAX_PAYLOAD: usize = 64 << 20;
/// The most descriptors one frame can carry (the kernel's `SCM_MAX_FD`).
pub const MAX_FRAME_FDS: usize = 253;
/// Bytes in a header.
pub const HEADER_LEN: usize = size_of::<FrameHeader>();

/// Why bytes were not taken for a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The first bytes are not ours.
    #[error("not a CPR channel: the frame starts with {found:02x?}, expected {MAGIC:02x?}")]
    Magic {
        /// What was there.
        found: [u8; 4],
    },
    /// The header's checksum does not fit.
    #[error("frame header is damaged: checksum {found:#010x}, expected {expected:#010x}")]
    HeaderChecksum {
        /// What the header says.
        found: u32,
        /// What its bytes give.
        expected: u32,
    },
    /// The payload's checksum does not fit.
    #[error("frame payload is damaged: checksum {found:#010x}, expected {expected:#010x}")]
    PayloadChecksum {
        /// What the header says.
        found: u32,
        /// What the bytes give.
        expected: u32,
    },
    /// The payload is announced longer than any can be.
    #[error("frame of {found} bytes; at most {MAX_PAYLOAD} are taken")]
    TooLong {
        /// The announced length.
        found: usize,
    },
    /// Frames were lost, doubled or put in another order.
    #[error("frame number {found}, expected {expected}")]
    Sequence {
        /// The number of the frame that came.
        found: u32,
        /// The number that was due.
        expected: u32,
    },
    /// The header announces other descriptors than came.
    #[error("frame with {found} descriptors, expected {expected}")]
    Descriptors {
        /// How many came.
        found: usize,
        /// How many were announced.
        expected: usize,
    },
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FrameHeader {
    magic: [u8; 4],
    /// What the payload is ([`super::message`]).
    pub kind: U16,
    /// How many descriptors come with it.
    pub fds: U16,
    /// Bytes of payload.
    pub length: U32,
    payload_crc: U32,
    /// Counts the frames of one direction, from 0.
    pub sequence: U32,
    header_crc: U32,
}

/// One frame.
#[derive(Debug)]
pub struct Frame {
    /// What the payload is ([`super::message`]).
    pub kind: u16,
    /// Counts the frames of one direction, from 0.
    pub sequence: u32,
    /// The message.
    pub payload: Vec<u8>,
    /// Its descriptors.
    pub fds: Vec<OwnedFd>,
}

impl FrameHeader {
    /// The header for a payload with `fds` descriptors.
    pub fn new(kind: u16, sequence: u32, payload: &[u8], fds: usize) -> Self {
        let mut header = Self {
            magic: MAGIC,
            kind: U16::new(kind),
            fds: U16::new(fds as u16),
            length: U32::new(payload.len() as u32),
            payload_crc: U32::new(crc32fast::hash(payload)),
            sequence: U32::new(sequence),
            header_crc: U32::ZERO,
        };
        header.header_crc = U32::new(header.checksum());
        header
    }

    fn checksum(&self) -> u32 {
        crc32fast::hash(&self.as_bytes()[..HEADER_LEN - size_of::<U32>()])
    }

    /// Reads and checks a header.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, FrameError> {
        let header = zerocopy::transmute!(*bytes);
        let Self { magic, length, header_crc, .. } = header;
        if magic != MAGIC {
            return Err(FrameError::Magic { found: magic });
        }
        let expected = header.checksum();
        if header_crc.get() != expected {
            return Err(FrameError::HeaderChecksum { found: header_crc.get(), expected });
        }
        if length.get() as usize > MAX_PAYLOAD {
            return Err(FrameError::TooLong { found: length.get() as usize });
        }
        Ok(header)
    }

    /// Checks a payload against its header.
    pub fn check_payload(&self, payload: &[u8]) -> Result<(), FrameError> {
        let expected = crc32fast::hash(payload);
        let found = self.payload_crc.get();
        if found == expected { Ok(()) } else { Err(FrameError::PayloadChecksum { found, expected }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_of_a_header_is_noticed() {
        let header = FrameHeader::new(3, 1, b"payload", 2);
        let bytes: [u8; HEADER_LEN] = zerocopy::transmute!(header);
        assert!(FrameHeader::parse(&bytes).is_ok());
        for bit in 0..HEADER_LEN * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(FrameHeader::parse(&damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_payload_of_another_frame_is_refused() {
        let header = FrameHeader::new(3, 1, b"payload", 0);
        assert!(header.check_payload(b"payloab").unwrap_err().to_string().contains("damaged"));
    }
}
