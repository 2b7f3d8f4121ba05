//! What can be asked of an engine.

use crate::devices::virtio::buffers::GuestBuffers;

/// What can be asked of an engine. Offsets and lengths are bytes, checked against the image before.
#[derive(Debug)]
pub enum Operation {
    /// Reads into RAM.
    Read {
        /// Where in the image.
        offset: u64,
        /// Where in RAM.
        into: GuestBuffers,
    },
    /// Writes from RAM.
    Write {
        /// Where in the image.
        offset: u64,
        /// Where in RAM.
        from: GuestBuffers,
        /// Whether it is on the medium when it is answered.
        durable: bool,
    },
    /// Brings everything that was answered before onto the medium.
    Flush,
    /// Says that the contents are not needed any more. They may stay.
    Discard {
        /// Where in the image.
        offset: u64,
        /// How much.
        len: u64,
    },
    /// Makes the contents zeroes.
    WriteZeroes {
        /// Where in the image.
        offset: u64,
        /// How much.
        len: u64,
        /// Whether the room may be given back to the host.
        unmap: bool,
        /// Whether it is on the medium when it is answered.
        durable: bool,
    },
}

impl Operation {
    /// What it is called in messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
            Self::Flush => "flush",
            Self::Discard { .. } => "discard",
            Self::WriteZeroes { .. } => "write of zeroes",
        }
    }
}
