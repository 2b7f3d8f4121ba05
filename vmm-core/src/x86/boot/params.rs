//! What a kernel finds in memory when it starts: command line, and the zero page or the PVH start info.

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

use super::{BootError, Initrd, map};
use crate::x86::layout;

/// `hvm_start_info.magic`.
const START_INFO_MAGIC: u32 = 0x336e_c578;
/// The version that has the memory map.
const START_INFO_VERSION: u32 = 1;
const MODULES_START: u64 = layout::PVH_INFO_START + size_of::<hvm_start_info>() as u64;
const MAP_START: u64 = MODULES_START + size_of::<hvm_modlist_entry>() as u64;

/// Writes the command line with its terminating zero; `max` is what the kernel takes without it.
pub(super) fn write_cmdline(cmdline: &str, max: u64, memory: &GuestMemoryMmap) -> Result<(), BootError> {
    if let Some(at) = cmdline.bytes().position(|byte| byte == 0) {
        return Err(BootError::CmdlineZero { at });
    }
    let (size, max) = (cmdline.len() as u64, max.min(layout::CMDLINE_SIZE - 1));
    if size > max {
        return Err(BootError::CmdlineTooLong { size, max });
    }
    let bytes = [cmdline.as_bytes(), &[0]].concat();
    memory
        .write_slice(&bytes, GuestAddress(layout::CMDLINE_START))
        .map_err(|source| BootError::Memory { what: "command line", source })
}

/// Writes the zero page of the Linux boot protocol around the kernel's own `header`.
pub(super) fn write_zero_page(
    header: setup_header,
    initrd: Option<Initrd>,
    rsdp: u64,
    memory: &GuestMemoryMmap,
    ram_size: u64,
) -> Result<(), BootError> {
    let mut params = boot_params { hdr: header, acpi_rsdp_addr: rsdp, ..Default::default() };
    params.hdr.cmd_line_ptr = layout::CMDLINE_START as u32;
    if let Some(initrd) = initrd {
        // Both fit: the initrd is below 4 GiB.
        params.hdr.ramdisk_image = initrd.address as u32;
        params.hdr.ramdisk_size = initrd.size as u32;
    }
    let areas = map::areas(ram_size);
    params.e820_entries = areas.len() as u8;
    for (entry, area) in params.e820_table.iter_mut().zip(areas) {
        *entry = boot_e820_entry { addr: area.start, size: area.size, r#type: area.kind };
    }
    write(&params, layout::ZERO_PAGE_START, "zero page", memory)
}

/// Writes the PVH start info, its module list and its memory map.
pub(super) fn write_start_info(
    initrd: Option<Initrd>,
    rsdp: u64,
    memory: &GuestMemoryMmap,
    ram_size: u64,
) -> Result<(), BootError> {
    let areas = map::areas(ram_size);
    let mut info = hvm_start_info {
        magic: START_INFO_MAGIC,
        version: START_INFO_VERSION,
        cmdline_paddr: layout::CMDLINE_START,
        rsdp_paddr: rsdp,
        memmap_paddr: MAP_START,
        memmap_entries: areas.len() as u32,
        ..Default::default()
    };
    if let Some(Initrd { address, size }) = initrd {
        info.nr_modules = 1;
        info.modlist_paddr = MODULES_START;
        let module = hvm_modlist_entry { paddr: address, size, ..Default::default() };
        write(&module, MODULES_START, "PVH module list", memory)?;
    }
    write(&info, layout::PVH_INFO_START, "PVH start info", memory)?;
    for (address, area) in (MAP_START..).step_by(size_of::<hvm_memmap_table_entry>()).zip(areas) {
        let entry = hvm_memmap_table_entry {
            addr: area.start,
            size: area.size,
            type_: area.kind,
            ..Default::default()
        };
        write(&entry, address, "PVH memory map", memory)?;
    }
    Ok(())
}

fn write<T: ByteValued>(
    value: &T,
    address: u64,
    what: &'static str,
    memory: &GuestMemoryMmap,
) -> Result<(), BootError> {
    memory
        .write_slice(value.as_slice(), GuestAddress(address))
        .map_err(|source| BootError::Memory { what, source })
}
