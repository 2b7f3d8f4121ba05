//! Loads a bzImage, to be started at its 64-bit entry.

use linux_loader::bootparam::setup_header;
use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::{ByteValued, GuestAddress, GuestMemoryMmap};

use super::file::BootFile;
use super::{BootError, Entry, Kernel};
use crate::x86::layout;

/// Where the setup header starts in the file and in the zero page.
const HEADER_OFFSET: u64 = 0x1f1;
/// `HdrS`, which every kernel since 1995 has.
pub(super) const HEADER_MAGIC: u32 = 0x5372_6448;
/// The first protocol with `xloadflags`.
pub(super) const VERSION_XLOADFLAGS: u16 = 0x020c;
/// `xloadflags`: there is a 64-bit entry, 512 bytes into the kernel.
const XLF_KERNEL_64: u16 = 1;
const ENTRY_64_OFFSET: u64 = 0x200;
/// `type_of_loader`: one without an id of its own.
pub(super) const LOADER_UNDEFINED: u8 = 0xff;

/// Loads the kernel at 1 MiB, from where it unpacks itself.
pub(super) fn load(file: &mut BootFile, memory: &GuestMemoryMmap, ram_end: u64) -> Result<Kernel, BootError> {
    let mut header = setup_header::default();
    file.read_at(HEADER_OFFSET, header.as_mut_slice())?;
    check(file, &header)?;

    let start = layout::HIGH_RAM_START;
    file.fits(start, start + file.size.min(layout::HOLE_END), ram_end)?;
    let unpack = start.max(header.pref_address);
    let end = unpack.saturating_add(header.init_size.into());
    file.fits(unpack, end, ram_end)?;

    let loaded = BzImage::load(memory, Some(GuestAddress(start)), &mut file.file, None)
        .map_err(|source| BootError::Load { path: file.path.clone(), source })?;
    header.code32_start = start as u32;
    header.type_of_loader = LOADER_UNDEFINED;
    Ok(Kernel {
        entry: Entry::Linux64 { entry: start + ENTRY_64_OFFSET, header },
        end: end.max(loaded.kernel_end),
        initrd_max: header.initrd_addr_max.into(),
        cmdline_max: header.cmdline_size.into(),
    })
}

fn check(file: &BootFile, header: &setup_header) -> Result<(), BootError> {
    let (magic, version, flags) = (header.header, header.version, header.xloadflags);
    if magic != HEADER_MAGIC {
        return Err(BootError::NotAKernel {
            path: file.path.clone(),
            found: format!("{magic:#010x} at 0x202"),
        });
    }
    if version < VERSION_XLOADFLAGS {
        let found = format!("boot protocol {}.{}", version >> 8, version & 0xff);
        return Err(BootError::Only32Bit { path: file.path.clone(), found });
    }
    if flags & XLF_KERNEL_64 == 0 {
        let found = format!("xloadflags {flags:#x}");
        return Err(BootError::Only32Bit { path: file.path.clone(), found });
    }
    let sectors = if header.setup_sects == 0 { 4 } else { header.setup_sects };
    let setup = (u64::from(sectors) + 1) * 512;
    if file.size <= setup + ENTRY_64_OFFSET {
        return Err(file.too_short(setup + ENTRY_64_OFFSET + 1));
    }
    Ok(())
}
