//! An open device: its regions, and its interrupts as the kernel sends them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_IRQ_INFO_NORESIZE, VFIO_PCI_CONFIG_REGION_INDEX,
    VFIO_PCI_ERR_IRQ_INDEX, VFIO_PCI_INTX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
    VFIO_PCI_REQ_IRQ_INDEX, VFIO_PCI_ROM_REGION_INDEX, VFIO_REGION_INFO_CAP_SPARSE_MMAP,
    VFIO_REGION_INFO_FLAG_MMAP,
};

use super::ioctls::{self, IrqAction};
use crate::devices::DeviceError;

/// How many BARs there can be.
pub(super) const BARS: u32 = 6;
/// Bytes of the part of configuration space that every function has.
pub(super) const CONFIG: usize = 256;
/// Those of its header, without which there is no function.
pub(super) const HEADER: usize = 64;

/// A kind of interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IrqKind {
    Intx,
    Msi,
    Msix,
    /// The device has failed.
    Error,
    /// The host wants the device back.
    Request,
}

impl IrqKind {
    fn index(self) -> u32 {
        match self {
            Self::Intx => VFIO_PCI_INTX_IRQ_INDEX,
            Self::Msi => VFIO_PCI_MSI_IRQ_INDEX,
            Self::Msix => VFIO_PCI_MSIX_IRQ_INDEX,
            Self::Error => VFIO_PCI_ERR_IRQ_INDEX,
            Self::Request => VFIO_PCI_REQ_IRQ_INDEX,
        }
    }
}

/// A region of the device: a BAR, or configuration space.
#[derive(Debug, Clone, Default)]
pub(super) struct Region {
    /// Bytes; 0 where there is none.
    pub(super) size: u64,
    /// Where it is in the device's file.
    pub(super) offset: u64,
    /// What of it can be mapped.
    pub(super) areas: Vec<Range<u64>>,
}

/// An open device.
pub(super) struct Handle {
    id: String,
    file: File,
    bars: Vec<Region>,
    config: Region,
    can_reset: bool,
}

impl Handle {
    /// Looks at a device that is open, and changes nothing of it.
    pub(super) fn new(id: &str, file: File) -> Result<Self, DeviceError> {
        let fd = file.as_fd();
        let info = ioctls::device_info(fd);
        let info = info.map_err(DeviceError::io(id, "asking VFIO what the device is"))?;
        if info.flags & VFIO_DEVICE_FLAGS_PCI == 0 {
            let found = format!("a device with the flags {:#x}", info.flags);
            return Err(DeviceError::unfit(id)((found, "a PCI device".into())));
        }
        let region = |index| -> Result<Region, DeviceError> {
            let got = ioctls::region_info(fd, index);
            let (info, bytes) =
                got.map_err(DeviceError::io(id, format!("asking VFIO for region {index}")))?;
            let mappable = info.flags & VFIO_REGION_INFO_FLAG_MMAP != 0;
            let areas = if mappable { areas(info.cap_offset, info.size, &bytes) } else { Vec::new() };
            Ok(Region { size: info.size, offset: info.offset, areas })
        };
        let bars = (0..BARS).map(region).collect::<Result<_, _>>()?;
        let config = region(VFIO_PCI_CONFIG_REGION_INDEX)?;
        if config.size < HEADER as u64 {
            let found = format!("{} bytes of configuration space", config.size);
            return Err(DeviceError::unfit(id)((found, format!("{HEADER} or more"))));
        }
        let can_reset = info.flags & VFIO_DEVICE_FLAGS_RESET != 0;
        Ok(Self { id: id.to_owned(), file, bars, config, can_reset })
    }

    /// The device's id in the machine.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// A BAR.
    pub(super) fn bar(&self, index: usize) -> &Region {
        // There are as many as BARs.
        &self.bars[index.min(BARS as usize - 1)]
    }

    /// Reads its ROM, if it has one with a size that `fits`. Where it is shorter than its region it reads as ones.
    pub(super) fn read_rom(&self, fits: impl FnOnce(u64) -> bool) -> io::Result<Option<Vec<u8>>> {
        let (info, _) = ioctls::region_info(self.file.as_fd(), VFIO_PCI_ROM_REGION_INDEX)?;
        if !fits(info.size) {
            return Ok(None);
        }
        let mut bytes = vec![0xff; info.size as usize];
        self.file.read_exact_at(&mut bytes, info.offset)?;
        Ok(Some(bytes))
    }

    /// Reads the configuration space that every function has. A mediated device may have less: there it reads as zeros.
    pub(super) fn image(&self) -> io::Result<[u8; CONFIG]> {
        let mut image = [0; CONFIG];
        let there = self.config.size.min(CONFIG as u64) as usize;
        self.read_config(0, &mut image[..there])?;
        Ok(image)
    }

    /// Reads configuration space.
    pub(super) fn read_config(&self, offset: usize, data: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(data, self.config.offset + offset as u64)
    }

    /// Writes configuration space. The kernel lets through what does no harm to the host.
    pub(super) fn write_config(&self, offset: usize, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, self.config.offset + offset as u64)
    }

    /// Reads from a BAR.
    pub(super) fn read_bar(&self, bar: usize, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(data, self.bar(bar).offset + offset)
    }

    /// Writes to a BAR.
    pub(super) fn write_bar(&self, bar: usize, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, self.bar(bar).offset + offset)
    }

    /// Whether the host can put it back to its beginning.
    pub(super) fn can_reset(&self) -> bool {
        self.can_reset
    }

    /// Puts the device back to its beginning, if it can be: it was when it was opened.
    pub(super) fn reset(&self) -> io::Result<()> {
        if self.can_reset { Ok(ioctls::reset(self.file.as_fd())?) } else { Ok(()) }
    }

    /// How many interrupts of a kind it has, and whether more of them can be used later than were at first.
    pub(super) fn interrupts(&self, kind: IrqKind) -> Result<(u32, bool), DeviceError> {
        let info = ioctls::irq_info(self.file.as_fd(), kind.index());
        let info =
            info.map_err(DeviceError::io(&self.id, format!("asking VFIO for its {kind:?} interrupts")))?;
        Ok((info.count, info.flags & VFIO_IRQ_INFO_NORESIZE == 0))
    }

    /// Does something about its interrupts.
    pub(super) fn irqs(&self, kind: IrqKind, action: IrqAction<'_>) -> io::Result<()> {
        Ok(ioctls::set_irqs(self.file.as_fd(), kind.index(), action)?)
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// What of a region can be mapped: what its capability says, or all of it.
fn areas(mut at: u32, size: u64, info: &[u8]) -> Vec<Range<u64>> {
    let word = |at: usize| {
        let bytes = info.get(at..at + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    let long = |at: usize| Some(u64::from(word(at)?) | u64::from(word(at + 4)?) << 32);
    // Each capability begins with its id and version, and where the next one is; there are few.
    for _ in 0..16 {
        let Some((id, next)) = word(at as usize).zip(word(at as usize + 4)).filter(|_| at != 0) else {
            break;
        };
        if id & 0xffff == VFIO_REGION_INFO_CAP_SPARSE_MMAP {
            let count = word(at as usize + 8).unwrap_or(0).min(256) as usize;
            let area = |index| {
                let at = at as usize + 16 + 16 * index;
                let start = long(at)?;
                let end = start.checked_add(long(at + 8)?).filter(|end| *end <= size)?;
                Some(start..end)
            };
            return (0..count).filter_map(area).collect();
        }
        at = next;
    }
    std::iter::once(0..size).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_mapped_is_what_the_capability_says() {
        let mut info = [0_u32; 20];
        // At 32: something else, then at 40 the areas.
        info[8..10].copy_from_slice(&[2, 40]);
        info[10..13].copy_from_slice(&[VFIO_REGION_INFO_CAP_SPARSE_MMAP | 1 << 16, 0, 2]);
        info[14..18].copy_from_slice(&[0, 0, 0x1000, 0]);
        info[18] = 0x2000;
        let bytes: Vec<u8> = info.iter().flat_map(|word| word.to_ne_bytes()).collect();
        // The second area's length is cut off: it is none.
        let ends = |at, size| areas(at, size, &bytes).iter().map(|area| area.end).collect::<Vec<_>>();
        assert_eq!(ends(32, 0x4000), [0x1000]);
        assert_eq!(ends(0, 0x4000), [0x4000]);
        assert!(ends(32, 0x800).is_empty());
        assert_eq!(ends(4000, 0x800), [0x800]);
    }
}
