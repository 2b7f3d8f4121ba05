//! Loads an ELF kernel, to be started at its PVH entry if it has one, else at its 64-bit entry.

use std::ops::Range;

use linux_loader::bootparam::setup_header;
use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr, PT_LOAD, PT_NOTE};
use linux_loader::loader::{Elf, KernelLoader, PvhBootCapability};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

use super::bzimage::{HEADER_MAGIC, LOADER_UNDEFINED, VERSION_XLOADFLAGS};
use super::file::BootFile;
use super::{BootError, Entry, Kernel, LINUX_CMDLINE_MAX};
use crate::x86::layout;

const CLASS_64: u8 = 2;
const MACHINE_X86_64: u16 = 62;
/// Most bytes of notes; Linux has a few hundred.
const NOTES_MAX: u64 = 1 << 20;
/// Last address that an initrd of a kernel without a setup header may touch, the default of the boot protocol.
const INITRD_MAX: u64 = 0x7fff_ffff;

/// Loads the kernel to the addresses that it names.
pub(super) fn load(file: &mut BootFile, memory: &GuestMemoryMmap, ram_end: u64) -> Result<Kernel, BootError> {
    let (segments, entry) = check(file, ram_end)?;
    for segment in &segments {
        clear(memory, segment.bss.clone())?;
    }
    let loaded = Elf::load(memory, None, &mut file.file, None)
        .map_err(|source| BootError::Load { path: file.path.clone(), source })?;
    let in_segment = |address: u64| segments.iter().any(|s| s.code.contains(&address));
    let entry = match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(GuestAddress(entry)) => Entry::Pvh { entry },
        _ => Entry::Linux64 { entry, header: header() },
    };
    let (Entry::Pvh { entry: address } | Entry::Linux64 { entry: address, .. }) = entry;
    if !in_segment(address) {
        return Err(file.malformed(format!("entry at {address:#x}"), "one in a loaded segment"));
    }
    Ok(Kernel {
        entry,
        end: segments.iter().map(|s| s.bss.end).max().unwrap_or(ram_end),
        initrd_max: INITRD_MAX,
        cmdline_max: LINUX_CMDLINE_MAX,
    })
}

/// Where a segment goes: what is in the file, and the zeros behind it.
struct Segment {
    code: Range<u64>,
    bss: Range<u64>,
}

/// Checks each program header before the loader follows it; gives the segments and the ELF entry.
fn check(file: &mut BootFile, ram_end: u64) -> Result<(Vec<Segment>, u64), BootError> {
    let mut ehdr = Elf64_Ehdr::default();
    file.read_at(0, ehdr.as_mut_slice())?;
    if ehdr.e_ident[4] != CLASS_64 {
        let found = format!("ELF class {}", ehdr.e_ident[4]);
        return Err(BootError::Only32Bit { path: file.path.clone(), found });
    }
    if ehdr.e_machine != MACHINE_X86_64 {
        let found = format!("ELF machine {}", ehdr.e_machine);
        return Err(BootError::NotAKernel { path: file.path.clone(), found });
    }
    let mut segments = Vec::new();
    let mut phdr = Elf64_Phdr::default();
    for index in 0..u64::from(ehdr.e_phnum) {
        let size = size_of::<Elf64_Phdr>() as u64;
        file.read_at(ehdr.e_phoff.saturating_add(index * size), phdr.as_mut_slice())?;
        match phdr.p_type {
            PT_LOAD if phdr.p_memsz > 0 => segments.push(segment(file, &phdr, ram_end)?),
            PT_NOTE if phdr.p_filesz > NOTES_MAX => {
                let found = format!("{} bytes of notes", phdr.p_filesz);
                return Err(file.malformed(found, format!("at most {NOTES_MAX}")));
            }
            _ => {}
        }
    }
    if segments.is_empty() {
        return Err(file.malformed("no segment to load".into(), "one or more"));
    }
    Ok((segments, ehdr.e_entry))
}

fn segment(file: &BootFile, phdr: &Elf64_Phdr, ram_end: u64) -> Result<Segment, BootError> {
    let start = phdr.p_paddr;
    let end = start.saturating_add(phdr.p_memsz);
    if start < layout::HIGH_RAM_START {
        let expected = format!("{:#x} or above", layout::HIGH_RAM_START);
        return Err(file.malformed(format!("a segment at {start:#x}"), expected));
    }
    if phdr.p_filesz > phdr.p_memsz {
        let found = format!("a segment of {} bytes with {} in the file", phdr.p_memsz, phdr.p_filesz);
        return Err(file.malformed(found, "no more in the file than in memory"));
    }
    let needed = phdr.p_offset.saturating_add(phdr.p_filesz);
    if needed > file.size {
        return Err(file.too_short(needed));
    }
    file.fits(start, end, ram_end)?;
    let code = start..start + phdr.p_filesz;
    Ok(Segment { bss: code.end..end, code })
}

/// RAM in a file that had another use before is not zero.
fn clear(memory: &GuestMemoryMmap, bss: Range<u64>) -> Result<(), BootError> {
    let zeros = [0; 4096];
    for address in bss.clone().step_by(zeros.len()) {
        let size = (bss.end - address).min(zeros.len() as u64) as usize;
        memory
            .write_slice(&zeros[..size], GuestAddress(address))
            .map_err(|source| BootError::Memory { what: "bss", source })?;
    }
    Ok(())
}

/// What a boot loader would have left in the zero page; an ELF kernel brings no setup header of its own.
fn header() -> setup_header {
    setup_header {
        boot_flag: 0xaa55,
        header: HEADER_MAGIC,
        version: VERSION_XLOADFLAGS,
        type_of_loader: LOADER_UNDEFINED,
        loadflags: 1,
        kernel_alignment: 0x100_0000,
        ..Default::default()
    }
}
