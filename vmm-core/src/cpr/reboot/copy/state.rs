//! Where the chunks of RAM are, on the wire.

use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::CopyError;
use super::chunk::CHUNK;
use crate::cpr::format::{Section, SectionKind};

/// The chunks that are in the file. All others are zeros.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamCopyState {
    /// The file that they are in.
    pub file: FileIdentity,
    /// In rising places of the RAM.
    pub chunks: Vec<ChunkState>,
}

/// What a file is known by, whatever its name: a copy of it has another inode, or one that was made at another time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    /// The number of its inode.
    pub inode: u64,
    /// When it was made, in nanoseconds since 1970; 0 where the file system does not say.
    pub made: u64,
}

impl FileIdentity {
    /// That of a file.
    pub fn of(file: &File) -> Result<Self, CopyError> {
        let metadata = file.metadata().map_err(CopyError::io("looking at the file"))?;
        let since = metadata.created().ok().and_then(|made| made.duration_since(UNIX_EPOCH).ok());
        Ok(Self { inode: metadata.ino(), made: since.unwrap_or_default().as_nanos() as u64 })
    }
}

impl fmt::Display for FileIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inode {} made at {}", self.inode, self.made)
    }
}

/// A chunk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkState {
    /// Which one, counted from the beginning of the RAM.
    pub index: u32,
    /// Where it is in the file.
    pub offset: u64,
    /// Bytes there.
    pub stored: u32,
    /// Their CRC-32.
    pub crc: u32,
}

impl Section for RamCopyState {
    const KIND: SectionKind = SectionKind::RamCopy;
    const VERSION: u16 = 1;
    const OLDEST: u16 = 1;
}

impl RamCopyState {
    /// Refuses a file that is not the one that was written: whoever has the guest of that one, this one would make two of it.
    pub fn check_file(&self, file: &File) -> Result<(), CopyError> {
        let (found, expected) = (FileIdentity::of(file)?, self.file);
        if found == expected { Ok(()) } else { Err(CopyError::AnotherFile { found, expected }) }
    }

    /// Refuses what cannot be of RAM with so many bytes, in a file that has chunks there.
    pub fn check(&self, ram: u64, file: &Range<u64>) -> Result<(), CopyError> {
        let mut next = 0;
        for chunk in &self.chunks {
            let impossible = |found: String, expected: String| Err(CopyError::Impossible { found, expected });
            let index = u64::from(chunk.index);
            if index < next || index * CHUNK >= ram {
                return impossible(
                    format!("chunk {index}"),
                    format!("rising ones, from {next} on, of {ram:#x} bytes"),
                );
            }
            next = index + 1;
            if chunk.stored == 0 || chunk.stored as usize > chunk.bytes(ram) {
                let found = format!("{} bytes of chunk {index}", chunk.stored);
                return impossible(found, format!("1 to {}", chunk.bytes(ram)));
            }
            let end = chunk.offset.checked_add(chunk.stored.into());
            if chunk.offset < file.start || end.is_none_or(|end| end > file.end) {
                return impossible(format!("chunk {index} at {:#x}", chunk.offset), format!("{file:#x?}"));
            }
        }
        Ok(())
    }
}

impl ChunkState {
    /// Where it begins in the RAM.
    pub fn at(&self) -> u64 {
        u64::from(self.index) * CHUNK
    }

    /// Its bytes in RAM of so many.
    pub(super) fn bytes(&self, ram: u64) -> usize {
        (ram - self.at()).min(CHUNK) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_refused_and_named() {
        let chunk = |index, offset, stored| ChunkState { index, offset, stored, crc: 0 };
        let (ram, file) = (3 * CHUNK / 2, 4096..8192);
        let said = |chunks: &[ChunkState]| {
            let checked =
                RamCopyState { chunks: chunks.to_vec(), ..RamCopyState::default() }.check(ram, &file);
            checked.err().map_or_else(String::new, |error| error.to_string())
        };
        assert_eq!(said(&[chunk(0, 4096, 100), chunk(1, 4196, 3996)]), "");
        assert!(said(&[chunk(1, 4096, 1), chunk(0, 4096, 1)]).contains("has chunk 0"));
        assert!(said(&[chunk(1, 4096, 1), chunk(1, 4096, 1)]).contains("has chunk 1"));
        assert!(said(&[chunk(2, 4096, 1)]).contains("has chunk 2"));
        assert!(said(&[chunk(0, 4096, 0)]).contains("0 bytes of chunk 0"));
        assert!(said(&[chunk(1, 4096, CHUNK as u32 / 2 + 1)]).contains("bytes of chunk 1"));
        for offset in [0, 4095, 8190, u64::MAX] {
            assert!(said(&[chunk(0, offset, 3)]).contains("chunk 0 at"), "{offset}");
        }
    }
}
