//! A kernel image: an ELF file with one segment and the note that names its PVH entry.

/// Bytes of the ELF header, and of a program header.
const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// Readable, writable, executable.
const FLAGS: u32 = 7;
/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const PHYS32_ENTRY: u32 = 18;
const NOTE: u64 = 20;

/// `code`, to be loaded at `address` and entered `entry` bytes into it.
pub(super) fn kernel(code: &[u8], address: u64, entry: u64) -> Vec<u8> {
    let note_at = HEADER + 2 * PROGRAM_HEADER;
    let code_at = note_at + NOTE;
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    let mut half = |value: u16| elf.extend(value.to_le_bytes());
    // An executable for x86-64.
    half(2);
    half(62);
    let mut word = |value: u32| elf.extend(value.to_le_bytes());
    word(1);
    for long in [address + entry, HEADER, 0] {
        elf.extend(long.to_le_bytes());
    }
    elf.extend(0_u32.to_le_bytes());
    for half in [HEADER as u16, PROGRAM_HEADER as u16, 2, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    let length = code.len() as u64;
    for (kind, at, address, size) in [(PT_LOAD, code_at, address, length), (PT_NOTE, note_at, 0, NOTE)] {
        elf.extend([kind, FLAGS].map(u32::to_le_bytes).as_flattened());
        elf.extend([at, address, address, size, size, 4].map(u64::to_le_bytes).as_flattened());
    }
    // The name's length, the value's length, the kind; the name and the value, padded to words.
    elf.extend([4, 4, PHYS32_ENTRY].map(u32::to_le_bytes).as_flattened());
    elf.extend(b"Xen\0");
    elf.extend(((address + entry) as u32).to_le_bytes());
    elf.extend(code);
    elf
}
