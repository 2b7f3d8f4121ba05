//! RAM out of the file, into RAM that nobody has used yet.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use super::chunk::{CHUNK, PAGE, Unpacker, data};
use super::progress::{Progress, log_tenths};
use super::state::{ChunkState, RamCopyState};
use super::{CopyError, processors};
use crate::memory::RamBlock;

/// RAM that is in a file.
#[derive(Debug)]
pub struct Copied {
    state: RamCopyState,
    file: File,
    /// Where the file has chunks.
    chunks: Range<u64>,
}

impl Copied {
    /// What a file has, which must be the one that was written.
    pub fn new(state: RamCopyState, file: File, chunks: Range<u64>) -> Result<Self, CopyError> {
        state.check_file(&file)?;
        Ok(Self { state, file, chunks })
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Its chunks, in rising places of the RAM.
    pub(super) fn chunks(&self) -> &[ChunkState] {
        &self.state.chunks
    }

    /// How many bytes they are of RAM with so many. An error says what of them cannot be.
    pub(super) fn bytes(&self, ram: u64) -> Result<u64, CopyError> {
        self.state.check(ram, &self.chunks)?;
        Ok(self.state.chunks.iter().map(|chunk| chunk.bytes(ram) as u64).sum())
    }

    /// Puts every chunk in its place.
    pub fn fill(&self, block: &RamBlock) -> Result<(), CopyError> {
        let ram = Ram::of(block).map_err(CopyError::io("mapping the RAM"))?;
        let progress = Progress::of(self.bytes(block.size())?, &log_tenths);
        self.each(block.size(), &|chunk, bytes| {
            for (at, run) in data(bytes, chunk.at()) {
                ram.put(run, at).map_err(CopyError::io(format!("filling RAM at {at:#x}")))?;
            }
            progress.add(bytes.len() as u64);
            Ok(())
        })
    }

    /// Checks every chunk of RAM with so many bytes, and puts nothing anywhere.
    pub fn verify(&self, ram: u64) -> Result<(), CopyError> {
        self.bytes(ram)?;
        self.each(ram, &|_, _| Ok(()))
    }

    /// Reads, checks and unpacks each chunk.
    fn each(&self, ram: u64, put: Put<'_>) -> Result<(), CopyError> {
        processors::each(&self.state.chunks, &Tools::new, &|chunk, tools| {
            put(chunk, self.unpack(chunk, ram, tools)?)
        })
    }

    /// Reads, checks and unpacks a chunk of RAM with so many bytes, for which all chunks were found possible ([`bytes`](Self::bytes)).
    pub(super) fn unpack<'a>(
        &self,
        chunk: &ChunkState,
        ram: u64,
        tools: &'a mut Tools,
    ) -> Result<&'a [u8], CopyError> {
        let stored = &mut tools.stored[..chunk.stored as usize];
        let doing = || format!("reading RAM at {:#x}", chunk.at());
        self.file.read_exact_at(stored, chunk.offset).map_err(CopyError::io(doing()))?;
        let (found, expected) = (crc32fast::hash(stored), chunk.crc);
        if found != expected {
            return Err(CopyError::Damaged { at: chunk.at(), found, expected });
        }
        let bytes = chunk.bytes(ram);
        tools.unpacker.unpack(stored, bytes).map_err(|found| CopyError::Impossible {
            found: format!("{found} in chunk {}", chunk.index),
            expected: format!("{bytes} bytes"),
        })
    }
}

/// What a thread needs to [`unpack`](Copied::unpack): a decompressor, and room for what it takes.
pub(super) struct Tools {
    unpacker: Unpacker,
    stored: Vec<u8>,
}

impl Tools {
    pub(super) fn new() -> Result<Self, CopyError> {
        let unpacker = Unpacker::new().map_err(CopyError::io("making a decompressor"))?;
        Ok(Self { unpacker, stored: vec![0; CHUNK as usize] })
    }
}

/// Puts the bytes of a chunk somewhere.
type Put<'a> = &'a (dyn Fn(&ChunkState, &[u8]) -> Result<(), CopyError> + Sync);

/// RAM to be filled.
enum Ram<'a> {
    /// By writing to its file: where there is no room left, that is an error.
    File(&'a File),
    /// By its mapping: a file of huge pages cannot be written to, and has them reserved.
    Mapped(MmapRegion),
}

impl<'a> Ram<'a> {
    fn of(block: &'a RamBlock) -> io::Result<Self> {
        if block.page_size() == PAGE as u64 {
            return Ok(Self::File(block.file()));
        }
        let at = FileOffset::from_arc(block.file().clone(), 0);
        MmapRegion::from_file(at, block.size() as usize).map(Self::Mapped).map_err(io::Error::other)
    }

    fn put(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        match self {
            Self::File(file) => file.write_all_at(bytes, at),
            Self::Mapped(region) => {
                region.get_slice(at as usize, bytes.len()).map_err(io::Error::other)?.copy_from(bytes);
                Ok(())
            }
        }
    }
}
