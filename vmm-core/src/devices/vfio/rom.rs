//! A device's expansion ROM (PCI Local Bus 3.0, 6.3): read once, when the device was just reset, and kept in a memfd that goes
//! along with the guest.
//!
//! The kernel switches the ROM's decoder on to look at it, which may switch the device's registers off meanwhile, and finds
//! none where its bytes are not those of a ROM at that moment: it is never asked again.

use std::fs::{File, Metadata};
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use memfd::{FileSeal, MemfdOptions};

use super::handle::Handle;
use crate::cpr::fds::{FdError, FdName, FdTable};

/// The bytes that one can have: a power of two of them.
const SIZES: RangeInclusive<u64> = 2 << 10..=16 << 20;

/// The contents of a ROM.
pub(super) struct Rom {
    file: File,
    /// Bytes.
    pub(super) size: u64,
}

fn fits(size: u64) -> bool {
    size.is_power_of_two() && SIZES.contains(&size)
}

fn name(id: &str) -> FdName {
    FdName::new(format!("{id}.rom"), 0)
}

impl Rom {
    /// Reads a device's, if it has one.
    pub(super) fn read_out(device: &Handle) -> io::Result<Option<Self>> {
        let Some(bytes) = device.read_rom(fits)? else { return Ok(None) };
        let memfd = MemfdOptions::new().allow_sealing(true).create("rom").map_err(io::Error::other)?;
        memfd.as_file().write_all_at(&bytes, 0)?;
        let seals = [FileSeal::SealShrink, FileSeal::SealGrow, FileSeal::SealWrite, FileSeal::SealSeal];
        memfd.add_seals(&seals).map_err(io::Error::other)?;
        Ok(Some(Self { file: memfd.into_file(), size: bytes.len() as u64 }))
    }

    /// Takes one from what was handed over, if there is one.
    pub(super) fn adopt(id: &str, fds: &mut FdTable) -> Result<Option<Self>, FdError> {
        let name = name(id);
        let Some(fd) = fds.take_optional(&name) else { return Ok(None) };
        let file = File::from(fd);
        // Of what is no file there is none.
        let size = file.metadata().ok().filter(Metadata::is_file).map_or(0, |metadata| metadata.len());
        if fits(size) {
            return Ok(Some(Self { file, size }));
        }
        let (found, expected) = (format!("{size} bytes"), format!("a power of two, {SIZES:?}"));
        Err(FdError::Wrong { name, found, expected })
    }

    /// Reads for the guest.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(data, offset)
    }

    /// Registers (a duplicate of) its descriptor.
    pub(super) fn register(&self, id: &str, fds: &mut FdTable) -> Result<(), FdError> {
        fds.insert_dup(name(id), self.file.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handed_over(size: u64) -> Result<Option<Rom>, FdError> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        let mut fds = FdTable::new();
        fds.insert_dup(name("vfio-2"), file.as_fd()).unwrap();
        Rom::adopt("vfio-2", &mut fds)
    }

    #[test]
    fn what_no_rom_can_be_is_refused() {
        assert!(handed_over(2048).unwrap().is_some_and(|rom| rom.size == 2048));
        for size in [0, 1024, 3000, 32 << 20] {
            assert!(handed_over(size).is_err(), "{size}");
        }
        assert!(Rom::adopt("vfio-2", &mut FdTable::new()).unwrap().is_none());
    }

    #[test]
    fn it_is_read_as_far_as_it_goes() {
        let rom = handed_over(2048).unwrap().unwrap();
        rom.file.write_all_at(&[0x55, 0xaa], 0).unwrap();
        let mut data = [0; 2];
        rom.read(0, &mut data).unwrap();
        assert_eq!(data, [0x55, 0xaa]);
        assert!(rom.read(2047, &mut data).is_err());
    }
}
