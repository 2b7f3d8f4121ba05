//! A kernel or an initrd, opened, and known to be a file of a certain size.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::BootError;

/// A file to boot from.
pub(super) struct BootFile {
    pub what: &'static str,
    pub path: PathBuf,
    pub file: File,
    pub size: u64,
}

impl BootFile {
    /// Opens it. `what` names it in errors.
    pub fn open(what: &'static str, path: &Path) -> Result<Self, BootError> {
        let read = |source| BootError::Read { what, path: path.to_owned(), source };
        // Before the open: opening a FIFO would wait for its writer.
        let metadata = std::fs::metadata(path).map_err(read)?;
        if !metadata.is_file() {
            return Err(BootError::NotAFile { what, path: path.to_owned() });
        }
        let file = File::open(path).map_err(read)?;
        let size = file.metadata().map_err(read)?.len();
        Ok(Self { what, path: path.to_owned(), file, size })
    }

    /// Whether it starts as an ELF file does.
    pub fn is_elf(&mut self) -> Result<bool, BootError> {
        let mut magic = [0; 4];
        self.read_at(0, &mut magic)?;
        Ok(magic == *b"\x7fELF")
    }

    /// Fills `bytes` from `offset`.
    pub fn read_at(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), BootError> {
        let needed = offset.saturating_add(bytes.len() as u64);
        if needed > self.size {
            return Err(self.too_short(needed));
        }
        self.file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| self.file.read_exact(bytes))
            .map_err(|source| self.failed(source))
    }

    /// Copies all of it to guest memory.
    pub fn read_to(&mut self, address: u64, memory: &GuestMemoryMmap) -> Result<(), BootError> {
        self.file.rewind().map_err(|source| self.failed(source))?;
        memory
            .read_exact_volatile_from(GuestAddress(address), &mut self.file, self.size as usize)
            .map_err(|source| BootError::Memory { what: self.what, source })
    }

    /// The error of a file that ends before `needed`.
    pub fn too_short(&self, needed: u64) -> BootError {
        BootError::TooShort { what: self.what, path: self.path.clone(), size: self.size, needed }
    }

    /// The error of a file that says what cannot be.
    pub fn malformed(&self, found: String, expected: impl Into<String>) -> BootError {
        BootError::Malformed { path: self.path.clone(), found, expected: expected.into() }
    }

    /// Checks that the addresses from `start` to `end` are RAM.
    pub fn fits(&self, start: u64, end: u64, ram_end: u64) -> Result<(), BootError> {
        if start <= end && end <= ram_end {
            return Ok(());
        }
        Err(BootError::DoesNotFit { what: self.what, path: self.path.clone(), start, end, ram_end })
    }

    fn failed(&self, source: io::Error) -> BootError {
        BootError::Read { what: self.what, path: self.path.clone(), source }
    }
}
