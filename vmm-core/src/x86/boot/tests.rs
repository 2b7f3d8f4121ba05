use std::io::Write;
use std::path::{Path, PathBuf};

use linux_loader::bootparam::{boot_params, setup_header};
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use tempfile::NamedTempFile;
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::*;

const MIB: u64 = 1 << 20;

fn memory(size: u64) -> GuestMemoryMmap {
    let ranges: Vec<_> =
        layout::ram_ranges(size).into_iter().map(|range| (range.guest, range.size as usize)).collect();
    GuestMemoryMmap::from_ranges(&ranges).unwrap()
}

fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn config(kernel: &Path) -> BootConfig {
    BootConfig { kernel: Some(kernel.to_owned()), cmdline: "console=ttyS0".into(), ..Default::default() }
}

fn try_load(bytes: &[u8], ram: u64) -> Result<BootEntry, BootError> {
    load(&config(file(bytes).path()), &memory(ram), ram, 1)
}

/// A header that describes a kernel of one page which needs 8 MiB at 16 MiB.
fn header() -> setup_header {
    setup_header {
        setup_sects: 1,
        boot_flag: 0xaa55,
        header: 0x5372_6448,
        version: 0x020f,
        loadflags: 1,
        xloadflags: 1,
        cmdline_size: 2047,
        initrd_addr_max: 0x7fff_ffff,
        pref_address: 16 * MIB,
        init_size: 8 << 20,
        ..Default::default()
    }
}

fn bzimage(header: setup_header) -> Vec<u8> {
    let mut bytes = vec![0; 1024 + 4096];
    bytes[0x1f1..][..size_of::<setup_header>()].copy_from_slice(header.as_slice());
    bytes[1024..].fill(0xb2);
    bytes
}

/// An ELF kernel: one segment at 1 MiB, and a PVH note if there is a `pvh` entry.
struct ElfFile {
    class: u8,
    entry: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
    pvh: Option<u32>,
}

impl Default for ElfFile {
    fn default() -> Self {
        Self { class: 2, entry: MIB, address: MIB, file_size: 64, memory_size: 8192, pvh: None }
    }
}

impl ElfFile {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; 0x400];
        bytes[..8].copy_from_slice(&[0x7f, b'E', b'L', b'F', self.class, 1, 1, 0]);
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0x10, &[2, 0, 62, 0, 1, 0, 0, 0]);
        put(0x18, &self.entry.to_le_bytes());
        put(0x20, &64u64.to_le_bytes());
        put(0x34, &[64, 0, 56, 0, if self.pvh.is_some() { 2 } else { 1 }, 0]);
        let mut header = |at: usize, kind: u32, offset: u64, address: u64, file: u64, memory: u64| {
            put(at, &kind.to_le_bytes());
            for (slot, value) in [offset, address, address, file, memory].into_iter().enumerate() {
                put(at + 8 + slot * 8, &value.to_le_bytes());
            }
        };
        header(64, 1, 0x200, self.address, self.file_size, self.memory_size);
        header(120, 4, 0x300, 0, 20, 20);
        let note = [4, 4, 18, u32::from_le_bytes(*b"Xen\0"), self.pvh.unwrap_or(0)];
        put(0x300, &note.map(u32::to_le_bytes).concat());
        put(0x200, &[0xe1; 64]);
        bytes
    }
}

#[test]
fn a_bzimage_is_laid_out_as_the_boot_protocol_says() {
    let (kernel, initrd) = (file(&bzimage(header())), file(&[0x1d; 5000]));
    let ram = 4 << 30;
    let memory = memory(ram);
    let config = BootConfig { initrd: Some(initrd.path().into()), ..config(kernel.path()) };
    let entry = load(&config, &memory, ram, 1).unwrap();
    assert_eq!(entry, BootEntry::Linux64 { entry: MIB + 0x200, zero_page: layout::ZERO_PAGE_START });
    assert_eq!(memory.read_obj::<u8>(GuestAddress(MIB + 0x200)).unwrap(), 0xb2);

    let params: boot_params = memory.read_obj(GuestAddress(layout::ZERO_PAGE_START)).unwrap();
    let (start, size) = (params.hdr.ramdisk_image, params.hdr.ramdisk_size);
    assert_eq!((start, size), (0x8000_0000 - 0x2000, 5000));
    assert_eq!(memory.read_obj::<u8>(GuestAddress(u64::from(start) + 4999)).unwrap(), 0x1d);
    let (rsdp, cmdline) = (params.acpi_rsdp_addr, params.hdr.cmd_line_ptr);
    assert_eq!((rsdp, params.hdr.type_of_loader), (layout::ACPI_START, 0xff));
    let mut text = [0; 14];
    memory.read_slice(&mut text, GuestAddress(cmdline.into())).unwrap();
    assert_eq!(&text, b"console=ttyS0\0");

    let map: Vec<_> = params.e820_table[..usize::from(params.e820_entries)]
        .iter()
        .filter(|entry| entry.r#type == map::RAM)
        .map(|entry| (entry.addr, entry.size))
        .collect();
    let low = layout::HOLE_START - MIB;
    assert_eq!(map, [(0, layout::EBDA_START), (MIB, low), (layout::HOLE_END, 1 << 30)]);
}

#[test]
fn an_elf_with_a_pvh_note_starts_there_and_is_told_of_memory_and_initrd() {
    let kernel = file(&ElfFile { pvh: Some(MIB as u32 + 16), ..Default::default() }.bytes());
    let initrd = file(&[0x1d; 5000]);
    let ram = 64 * MIB;
    let memory = memory(ram);
    memory.write_obj(0xffu8, GuestAddress(MIB + 8191)).unwrap();
    let config = BootConfig { initrd: Some(initrd.path().into()), ..config(kernel.path()) };
    let entry = load(&config, &memory, ram, 1).unwrap();
    assert_eq!(entry, BootEntry::Pvh { entry: MIB + 16, start_info: layout::PVH_INFO_START });
    assert_eq!(memory.read_obj::<u8>(GuestAddress(MIB + 63)).unwrap(), 0xe1);
    assert_eq!(memory.read_obj::<u8>(GuestAddress(MIB + 8191)).unwrap(), 0, "bss");

    let info: hvm_start_info = memory.read_obj(GuestAddress(layout::PVH_INFO_START)).unwrap();
    assert_eq!((info.magic, info.version, info.rsdp_paddr), (0x336e_c578, 1, layout::ACPI_START));
    let module: hvm_modlist_entry = memory.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
    assert_eq!((module.paddr, module.size), (ram - 0x2000, 5000));
    let entries = (info.memmap_paddr..).step_by(24).take(info.memmap_entries as usize);
    let ram_seen: u64 = entries
        .map(|at| memory.read_obj::<hvm_memmap_table_entry>(GuestAddress(at)).unwrap())
        .filter(|entry| entry.type_ == map::RAM)
        .map(|entry| entry.size)
        .sum();
    assert_eq!(ram_seen, ram - (MIB - layout::EBDA_START));
}

#[test]
fn an_elf_without_a_pvh_note_starts_at_its_64_bit_entry() {
    let entry = try_load(&ElfFile::default().bytes(), 64 * MIB).unwrap();
    assert_eq!(entry, BootEntry::Linux64 { entry: MIB, zero_page: layout::ZERO_PAGE_START });
}

#[test]
fn a_firmware_is_given_the_reset_vector_and_nothing_in_memory() {
    let memory = memory(MIB);
    let config = BootConfig { firmware: Some("rom.bin".into()), ..Default::default() };
    assert_eq!(load(&config, &memory, MIB, 1).unwrap(), BootEntry::ResetVector);
    let mut bytes = vec![0; MIB as usize];
    memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
}

#[test]
fn what_is_no_kernel_is_refused_and_named() {
    let old = setup_header { version: 0x0206, ..header() };
    let only_32 = setup_header { xloadflags: 0, ..header() };
    let arm = {
        let mut bytes = ElfFile::default().bytes();
        bytes[0x12] = 183;
        bytes
    };
    for (bytes, words) in [
        (vec![0; 5000], "not a kernel"),
        (arm, "ELF machine 183"),
        (vec![], "too short"),
        (b"\x7fELF".to_vec(), "too short"),
        (bzimage(header())[..600].to_vec(), "too short"),
        (bzimage(header())[..1024].to_vec(), "too short"),
        (ElfFile { file_size: 4096, ..Default::default() }.bytes(), "too short"),
        (bzimage(old), "no 64-bit entry"),
        (bzimage(only_32), "no 64-bit entry"),
        (ElfFile { class: 1, ..Default::default() }.bytes(), "no 64-bit entry"),
        (ElfFile { entry: 2 * MIB, ..Default::default() }.bytes(), "entry at 0x200000"),
        (ElfFile { pvh: Some(0), ..Default::default() }.bytes(), "entry at 0x0"),
        (ElfFile { address: 0x7000, ..Default::default() }.bytes(), "a segment at 0x7000"),
        (ElfFile { memory_size: 8, ..Default::default() }.bytes(), "64 in the file"),
        (ElfFile { memory_size: 0, ..Default::default() }.bytes(), "no segment to load"),
    ] {
        let error = try_load(&bytes, 64 * MIB).expect_err(words).to_string();
        assert!(error.contains(words), "{error}; expected: {words}");
    }
}

#[test]
fn what_does_not_fit_the_ram_is_refused_and_named() {
    let far = setup_header { pref_address: u64::MAX - 1, ..header() };
    for (bytes, ram) in [
        (bzimage(header()), 20 * MIB),
        (bzimage(header()), MIB),
        (bzimage(far), 64 * MIB),
        (ElfFile { memory_size: u64::MAX, ..Default::default() }.bytes(), 64 * MIB),
        (ElfFile { address: u64::MAX - 64, entry: 0, ..Default::default() }.bytes(), 64 * MIB),
    ] {
        let error = try_load(&bytes, ram).expect_err("refused");
        assert!(matches!(error, BootError::DoesNotFit { what: "kernel", .. }), "{error}");
    }
    let (kernel, initrd) = (file(&bzimage(header())), file(&vec![0; 8 << 20]));
    let config = BootConfig { initrd: Some(initrd.path().into()), ..config(kernel.path()) };
    let error = load(&config, &memory(30 * MIB), 30 * MIB, 1).unwrap_err();
    assert!(matches!(error, BootError::InitrdDoesNotFit { size, .. } if size == 8 << 20), "{error}");
}

#[test]
fn paths_that_lead_to_no_file_are_refused_and_named() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let absent = directory.path().join("absent");
    let load = |path: &PathBuf| load(&config(path), &memory(MIB), MIB, 1).unwrap_err();
    assert!(matches!(load(&absent), BootError::Read { what: "kernel", .. }));
    assert!(matches!(load(&fifo), BootError::NotAFile { .. }));
    assert!(matches!(load(&directory.path().to_owned()), BootError::NotAFile { .. }));
    let (kernel, empty) = (file(&bzimage(header())), file(&[]));
    let with_initrd = BootConfig { initrd: Some(empty.path().into()), ..config(kernel.path()) };
    let error = super::load(&with_initrd, &memory(64 * MIB), 64 * MIB, 1).unwrap_err();
    assert!(matches!(error, BootError::TooShort { what: "initrd", .. }));
}

#[test]
fn a_command_line_that_the_kernel_would_cut_is_refused() {
    let kernel = file(&bzimage(header()));
    let attempt = |cmdline: String| {
        let config = BootConfig { cmdline, ..config(kernel.path()) };
        load(&config, &memory(64 * MIB), 64 * MIB, 1)
    };
    attempt("x".repeat(2047)).unwrap();
    let error = attempt("x".repeat(2048)).unwrap_err();
    assert!(matches!(error, BootError::CmdlineTooLong { size: 2048, max: 2047 }));
    assert!(matches!(attempt("a\0b".into()), Err(BootError::CmdlineZero { at: 1 })));
}

#[test]
fn a_kernel_cut_or_changed_anywhere_is_loaded_or_refused_but_never_worse() {
    let ram = 32 * MIB;
    let memory = memory(ram);
    let with_note = ElfFile { pvh: Some(MIB as u32), ..Default::default() }.bytes();
    for (whole, changed) in [(with_note, 0..0x340), (bzimage(header()), 0x1f1..0x270)] {
        let attempt = |bytes: &[u8]| {
            let _ = load(&config(file(bytes).path()), &memory, ram, 1);
        };
        for size in (0..whole.len()).step_by(7) {
            attempt(&whole[..size]);
        }
        for at in changed {
            for value in [0, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                attempt(&bytes);
            }
        }
    }
}
