//! RAM out of the file, into RAM that nobody has used yet.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use super::chunk::{CHUNK, PAGE, Unpacker, is_zero};
use super::progress::{Progress, tenth};
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

    /// Puts every chunk in its place.
    pub fn fill(&self, block: &RamBlock) -> Result<(), CopyError> {
        let ram = Ram::of(block).map_err(CopyError::io("mapping the RAM"))?;
        let total = self.state.chunks.iter().map(|chunk| chunk.bytes(block.size()) as u64).sum();
        let told = |done: u64, total: u64| {
            if let Some(tenth) = tenth(done, done.saturating_sub(CHUNK), total) {
                tracing::info!("reading RAM: {tenth}0% of {} MiB", total >> 20);
            }
        };
        let progress = Progress::of(total, &told);
        self.each(block.size(), &|chunk, bytes| {
            // A page of zeros is not touched: it would take room.
            for (page, at) in bytes.chunks(PAGE).zip((chunk.at()..).step_by(PAGE)) {
                if !is_zero(page) {
                    ram.put(page, at).map_err(CopyError::io(format!("filling RAM at {at:#x}")))?;
                }
            }
            progress.add(bytes.len() as u64);
            Ok(())
        })
    }

    /// Checks every chunk of RAM with so many bytes, and puts nothing anywhere.
    pub fn verify(&self, ram: u64) -> Result<(), CopyError> {
        self.each(ram, &|_, _| Ok(()))
    }

    /// Reads, checks and unpacks each chunk.
    fn each(&self, ram: u64, put: Put<'_>) -> Result<(), CopyError> {
        self.state.check(ram, &self.chunks)?;
        let tools = || {
            let unpacker = Unpacker::new().map_err(CopyError::io("making a decompressor"))?;
            Ok((unpacker, vec![0; CHUNK as usize]))
        };
        processors::each(&self.state.chunks, &tools, &|chunk, (unpacker, stored)| {
            let stored = &mut stored[..chunk.stored as usize];
            let doing = || format!("reading RAM at {:#x}", chunk.at());
            self.file.read_exact_at(stored, chunk.offset).map_err(CopyError::io(doing()))?;
            let (found, expected) = (crc32fast::hash(stored), chunk.crc);
            if found != expected {
                return Err(CopyError::Damaged { at: chunk.at(), found, expected });
            }
            let bytes = chunk.bytes(ram);
            let unpacked = unpacker.unpack(stored, bytes).map_err(|found| CopyError::Impossible {
                found: format!("{found} in chunk {}", chunk.index),
                expected: format!("{bytes} bytes"),
            })?;
            put(chunk, unpacked)
        })
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
