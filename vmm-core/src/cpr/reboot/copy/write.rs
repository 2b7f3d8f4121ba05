//! RAM into the file. The guest stands.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::chunk::{CHUNK, Packer};
use super::progress::{Progress, Told};
use super::state::{ChunkState, FileIdentity, RamCopyState};
use super::{CopyError, DATA, processors};
use crate::memory::{RamBlock, next_data};

/// Bytes of a file's block, as `stat` counts.
const BLOCK: u64 = 512;

/// What was written.
#[derive(Debug)]
pub struct Written {
    /// Where what is.
    pub state: RamCopyState,
    /// Where the chunks end in the file.
    pub end: u64,
    /// Bytes of RAM that they hold.
    pub ram: u64,
}

/// The most bytes that the RAM takes as it is now.
pub fn most(block: &RamBlock) -> io::Result<u64> {
    let used = block.file().metadata()?.blocks() * BLOCK;
    // A page here and there makes whole chunks of it, which are mostly zeros, and never take more than their pages.
    Ok(DATA + used.min(block.size()) + chunks(block)?.len() as u64 * BLOCK)
}

/// The chunks that have anything.
fn chunks(block: &RamBlock) -> io::Result<Vec<u32>> {
    let (mut found, mut from) = (Vec::new(), 0);
    while let Some((data, _)) = next_data(block.file(), from, block.size())? {
        let index = data / CHUNK;
        found.push(u32::try_from(index).map_err(io::Error::other)?);
        from = (index + 1) * CHUNK;
    }
    Ok(found)
}

/// Writes all of it behind the stamp's page, by all processors. Asks before each chunk whether it is to go on.
pub fn write(
    block: &RamBlock,
    to: &File,
    cancelled: &(dyn Fn() -> bool + Sync),
    told: Told<'_>,
) -> Result<Written, CopyError> {
    let all = chunks(block).map_err(CopyError::io("looking for what of the RAM is in use"))?;
    let bytes = |index: u32| ChunkState { index, ..ChunkState::default() }.bytes(block.size()) as u64;
    let progress = Progress::of(all.iter().map(|index| bytes(*index)).sum(), told);
    let writer = Writer { block, to, end: AtomicU64::new(DATA), done: Mutex::default() };
    let tools = || {
        let packer = Packer::new().map_err(CopyError::io("making a compressor"))?;
        Ok((packer, vec![0; CHUNK as usize]))
    };
    processors::each(&all, &tools, &|index, (packer, ram)| {
        if cancelled() {
            return Err(CopyError::Cancelled);
        }
        writer.one(*index, packer, ram)?;
        progress.add(bytes(*index));
        Ok(())
    })?;
    let mut chunks = writer.done.into_inner().unwrap_or_default();
    chunks.sort_unstable_by_key(|chunk| chunk.index);
    let ram = chunks.iter().map(|chunk| chunk.bytes(block.size()) as u64).sum();
    let state = RamCopyState { file: FileIdentity::of(to)?, chunks };
    Ok(Written { state, end: writer.end.into_inner(), ram })
}

/// What the threads share.
struct Writer<'a> {
    block: &'a RamBlock,
    to: &'a File,
    end: AtomicU64,
    done: Mutex<Vec<ChunkState>>,
}

impl Writer<'_> {
    fn one(&self, index: u32, packer: &mut Packer, ram: &mut [u8]) -> Result<(), CopyError> {
        let mut chunk = ChunkState { index, ..ChunkState::default() };
        let ram = &mut ram[..chunk.bytes(self.block.size())];
        let doing = || format!("reading RAM at {:#x}", chunk.at());
        self.block.file().read_exact_at(ram, chunk.at()).map_err(CopyError::io(doing()))?;
        let Some(packed) = packer.pack(ram) else { return Ok(()) };
        chunk.stored = packed.len() as u32;
        chunk.crc = crc32fast::hash(packed);
        chunk.offset = self.end.fetch_add(packed.len() as u64, Relaxed);
        let doing = || format!("writing RAM at {:#x}", chunk.at());
        self.to.write_all_at(packed, chunk.offset).map_err(CopyError::io(doing()))?;
        self.done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(chunk);
        Ok(())
    }
}
