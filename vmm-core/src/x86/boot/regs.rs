//! The registers, descriptors and page tables with which the boot vCPU starts.

use kvm_bindings::{kvm_dtable, kvm_fpu, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::x86::layout;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS with only its reserved bit: interrupts off.
const RFLAGS: u64 = 2;

/// Page table entry: present, writable.
const PRESENT: u64 = 3;
/// Page directory entry: a 2 MiB page.
const LARGE: u64 = 1 << 7;
const PAGE: u64 = 0x1000;
/// Page directories, of 1 GiB each.
const DIRECTORIES: u64 = 4;

/// Linux's `__BOOT_CS`.
const CODE_SELECTOR: u16 = 0x10;
/// Linux's `__BOOT_DS`.
const DATA_SELECTOR: u16 = 0x18;
const TSS_SELECTOR: u16 = 0x20;
/// Segment types: code, execute and read, accessed; data, read and write, accessed; busy 32-bit (and 64-bit) TSS.
const CODE: u8 = 0xb;
const DATA: u8 = 0x3;
const TSS: u8 = 0xb;

/// General registers at Linux's 64-bit entry.
pub(super) fn linux64(entry: u64, zero_page: u64) -> kvm_regs {
    kvm_regs { rip: entry, rsi: zero_page, rsp: layout::BOOT_STACK, rflags: RFLAGS, ..Default::default() }
}

/// General registers at the PVH entry.
pub(super) fn pvh(entry: u64, start_info: u64) -> kvm_regs {
    kvm_regs { rip: entry, rbx: start_info, rflags: RFLAGS, ..Default::default() }
}

/// The FPU as `FNINIT` leaves it, and the SSE control register as reset does.
pub(super) fn fpu() -> kvm_fpu {
    kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() }
}

/// Changes reset values to those for a 64-bit (`long`) or a 32-bit start.
pub(super) fn special(sregs: &mut kvm_sregs, long: bool) {
    let [code, data, tss] = segments(long);
    sregs.cs = code;
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = data;
    }
    sregs.tr = tss;
    let gdt_limit = (size_of::<[u64; 5]>() - 1) as u16;
    sregs.gdt = kvm_dtable { base: layout::GDT_START, limit: gdt_limit, ..Default::default() };
    sregs.idt = kvm_dtable { base: layout::IDT_START, limit: 0, ..Default::default() };
    sregs.cr0 = CR0_PE | CR0_ET;
    if long {
        sregs.cr0 |= CR0_PG;
        sregs.cr3 = layout::PAGE_TABLES_START;
        sregs.cr4 |= CR4_PAE;
        sregs.efer |= EFER_LME | EFER_LMA;
    }
}

fn segments(long: bool) -> [kvm_segment; 3] {
    let flat = kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, ..Default::default() };
    [
        kvm_segment { selector: CODE_SELECTOR, type_: CODE, l: long.into(), db: (!long).into(), ..flat },
        kvm_segment { selector: DATA_SELECTOR, type_: DATA, db: 1, ..flat },
        kvm_segment { selector: TSS_SELECTOR, type_: TSS, limit: 0x67, present: 1, ..Default::default() },
    ]
}

/// Writes the descriptors that [`special`] has loaded, and maps the lower 4 GiB one to one if `long`.
pub(super) fn write_tables(memory: &GuestMemoryMmap, long: bool) -> Result<(), GuestMemoryError> {
    let [code, data, tss] = segments(long);
    let gdt = [0, 0, descriptor(&code), descriptor(&data), descriptor(&tss)];
    write_words(memory, layout::GDT_START, gdt)?;
    write_words(memory, layout::IDT_START, [0])?;
    if !long {
        return Ok(());
    }
    let directory_pointers = layout::PAGE_TABLES_START + PAGE;
    let directories = directory_pointers + PAGE;
    write_words(memory, layout::PAGE_TABLES_START, [directory_pointers | PRESENT])?;
    let pointers = (0..DIRECTORIES).map(|i| (directories + i * PAGE) | PRESENT);
    write_words(memory, directory_pointers, pointers)?;
    let pages = (0..DIRECTORIES * 512).map(|i| (i << 21) | LARGE | PRESENT);
    write_words(memory, directories, pages)
}

fn write_words(
    memory: &GuestMemoryMmap,
    start: u64,
    words: impl IntoIterator<Item = u64>,
) -> Result<(), GuestMemoryError> {
    for (address, word) in (start..).step_by(size_of::<u64>()).zip(words) {
        memory.write_obj(word, GuestAddress(address))?;
    }
    Ok(())
}

/// A segment with base 0 as its descriptor (Intel SDM volume 3, 3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let access = u64::from(segment.type_ | segment.s << 4 | segment.dpl << 5 | segment.present << 7);
    let flags = u64::from(segment.avl | segment.l << 1 | segment.db << 2 | segment.g << 3);
    (limit & 0xffff) | access << 40 | (limit >> 16 & 0xf) << 48 | flags << 52
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_of_a_flat_model() {
        let [code, data, tss] = segments(true).map(|segment| descriptor(&segment));
        assert_eq!([code, data, tss], [0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067]);
        assert_eq!(descriptor(&segments(false)[0]), 0x00cf_9b00_0000_ffff);
    }

    #[test]
    fn the_lower_four_gib_are_mapped_one_to_one() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write_tables(&memory, true).unwrap();
        let word = |at: u64| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
        for address in [0u64, 0x10_0000, 0xbfff_f000, 0xffff_f000] {
            let pointers = word(layout::PAGE_TABLES_START) & !0xfff;
            let directory = word(pointers + 8 * (address >> 30)) & !0xfff;
            let page = word(directory + 8 * (address >> 21 & 0x1ff));
            assert_eq!(page, (address & !0x1f_ffff) | LARGE | PRESENT);
        }
    }
}
