//! What a guest was doing that says nothing any more.
//!
//! 1. [`print()`] tells where each of its vCPUs stands, from its saved state and its RAM.
//! 2. [`interrupted_twice`] tells, and [`print()`] hints at, a guest that the lab's own machine has killed. QEMU's TCG (10.0) now
//!    and then delivers an interrupt that KVM injects (EVENTINJ) a second time, where interrupts are off: at the first instruction of its
//!    handler, or later. Then Linux runs its handlers on a user's GS, and panics; or its scheduler's tick waits for a lock that
//!    the code has which it interrupted, for good.

use std::fs::{self, File};
use std::num::NonZero;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use vmm_core::config::MachineConfig;
use vmm_core::cpr::format::{SectionKind, StateReader};
use vmm_core::cpr::reboot::file;
use vmm_core::machine::state::MachineState;
use vmm_core::vcpu::state::{Tsc, VcpuState};
use vmm_core::x86::clock::host_tsc;

use super::dax;

/// The most of a stack that is looked through.
const STACK: usize = 16 << 10;
const CR4_LA57: u64 = 1 << 12;
/// Where Linux has its code and its modules'.
const CODE: std::ops::Range<u64> = 0xffff_ffff_8000_0000..0xffff_ffff_ff00_0000;
/// Registers of a vCPU worth a look: timers, and what the guest asked of KVM.
const MSRS: [(u32, &str); 7] = [
    (0x6e0, "TSC_DEADLINE"),
    (0x4b56_4d01, "SYSTEM_TIME"),
    (0x4b56_4d02, "ASYNC_PF_EN"),
    (0x4b56_4d03, "STEAL_TIME"),
    (0x4b56_4d04, "PV_EOI_EN"),
    (0x4b56_4d05, "POLL_CONTROL"),
    (0x4b56_4d06, "ASYNC_PF_INT"),
];

/// What holds a guest's RAM, that below 3 GiB first, also when the guest has been saved and its process has ended.
pub struct Holder {
    file: File,
    length: u64,
}

impl Holder {
    /// Of a guest that this process has, whose RAM is there, or in a memfd.
    pub fn find(pid: u32, ram: Option<&Path>) -> Result<Self> {
        ram.map_or_else(|| Self::of_process(pid), Self::open)
    }

    /// A file or a DAX device.
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        let length = match file.metadata()?.len() {
            0 => dax::size(path)?,
            length => length,
        };
        Ok(Self { file, length })
    }

    /// The largest memory without a name that a process has open.
    fn of_process(pid: u32) -> Result<Self> {
        let directory = PathBuf::from(format!("/proc/{pid}/fd"));
        let entries = fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))?;
        let nameless = entries.flatten().map(|entry| entry.path()).filter(|path| {
            fs::read_link(path).is_ok_and(|target| target.to_string_lossy().ends_with(" (deleted)"))
        });
        let largest = nameless.max_by_key(|path| path.metadata().map_or(0, |found| found.len()));
        Self::open(&largest.with_context(|| format!("process {pid} has no memory open"))?)
    }
}

/// Prints where the vCPUs in a state file stand.
pub fn print(state: &Path, ram: &Holder) -> Result<()> {
    let mut reader = StateReader::parse(&file::look_at(state)?.state)?;
    let MachineState { config, .. } = reader.peek(0)?;
    let ram = Ram::map(ram, MachineConfig::from_toml(&config)?.memory.backing.offset().unwrap_or(0))?;
    println!("--- the vCPUs of the guest");
    for index in reader.instances(SectionKind::Vcpu) {
        vcpu(index, &reader.take(index)?, &ram)?;
    }
    println!("---");
    Ok(())
}

/// The handler that a guest's kernel says was interrupted at its first instruction, where interrupts were off.
pub fn interrupted_twice(log: &str) -> Option<&str> {
    const IF: u32 = 1 << 9;
    let handlers = log.match_indices("RIP: 0010:asm_sysvec_").filter_map(|(at, _)| {
        let rest = &log[at + "RIP: 0010:".len()..];
        let (name, offset) = rest.lines().next()?.split_once('+')?;
        offset.starts_with("0x0/").then_some((name, rest))
    });
    handlers.into_iter().find_map(|(name, rest)| {
        let flags = rest.split("EFLAGS: ").nth(1)?.get(..8)?;
        (u32::from_str_radix(flags, 16).ok()? & IF == 0).then_some(name)
    })
}

fn vcpu(index: u32, state: &VcpuState, ram: &Ram) -> Result<()> {
    let (regs, sregs, events) = (state.regs.get()?, state.sregs.get()?, state.events.get()?);
    let space = Space { cr3: sregs.cr3, la57: sregs.cr4 & CR4_LA57 != 0 };
    println!("vcpu {index}: mp-state {}, {regs:x?}", state.mp_state);
    println!("  cr2 {:#x} cr3 {:#x} {events:x?}", sregs.cr2, sregs.cr3);
    let msr = |which| state.msrs.iter().find(|msr| msr.index == which).map(|msr| msr.value);
    for (which, name) in MSRS {
        print!("  {name} {:x?}", msr(which));
    }
    println!();
    if let (Tsc::Offset(offset), Some(deadline)) = (state.tsc, msr(0x6e0)) {
        println!("  TSC now {:#x}, deadline {:#x}", host_tsc().wrapping_add(offset), deadline);
    }
    let lapic = state.lapic.get()?;
    let byte = |at: usize| lapic.regs[at] as u8;
    let word = |at: usize| u32::from_le_bytes([byte(at), byte(at + 1), byte(at + 2), byte(at + 3)]);
    for (name, at) in [("ISR", 0x100), ("IRR", 0x200)] {
        let vectors: Vec<_> =
            (0..256).filter(|vector| word(at + vector / 32 * 0x10) >> (vector % 32) & 1 != 0).collect();
        print!("  {name} {vectors:x?}");
    }
    for (name, at) in
        [("TPR", 0x80), ("SVR", 0xf0), ("ICR", 0x300), ("LVTT", 0x320), ("TMICT", 0x380), ("TMCCT", 0x390)]
    {
        print!("  {name} {:#x}", word(at));
    }
    println!();
    for (name, address) in [
        ("rip", regs.rip),
        ("rax", regs.rax),
        ("rbx", regs.rbx),
        ("rcx", regs.rcx),
        ("rdx", regs.rdx),
        ("rdi", regs.rdi),
        ("rsi", regs.rsi),
        ("rbp", regs.rbp),
        ("r12", regs.r12),
        ("r13", regs.r13),
    ] {
        let there = read(ram, space, address, 32);
        if there.len() == 32 {
            println!("  at {name} {address:x}: {there:02x?}");
        }
    }
    let mut stack = words(&read(ram, space, regs.rsp, STACK));
    // On top of a stack for interrupts is where the interrupted one is.
    if let Some(before) = stack.last().copied() {
        stack.extend(words(&read(ram, space, before, STACK)));
    }
    let code: Vec<_> =
        stack.iter().filter(|word| CODE.contains(word)).map(|word| format!("{word:x}")).collect();
    println!("  stack {}", code.join(" "));
    if let Some(at) = masked(&stack) {
        println!("  the kernel was interrupted, or met a fault, with interrupts off (at {at:x})");
    }
    Ok(())
}

fn words(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default())).collect()
}

/// Where the kernel was interrupted with interrupts off, or met a fault, by what Linux keeps of both on the stack (`struct
/// pt_regs`, whose `orig_ax` is -1 then). A hint, no proof: what returned long ago may still lie there.
fn masked(stack: &[u64]) -> Option<u64> {
    const KERNEL_CS: u64 = 0x10;
    // As the kernel sets it, or as the processor does on its way from user mode.
    const KERNEL_SS: [u64; 2] = [0x18, 0];
    const IF: u64 = 1 << 9;
    let frame = |at: &&[u64]| {
        let [kind, rip, cs, flags, _, ss] = **at else { return false };
        let interrupt = kind == u64::MAX && CODE.contains(&rip) && cs == KERNEL_CS && KERNEL_SS.contains(&ss);
        interrupt && flags >> 22 == 0 && flags & IF == 0
    };
    stack.windows(6).find(frame).map(|at| at[1])
}

/// A guest's RAM, mapped for as long as the lab lasts: a DAX device cannot be read otherwise.
struct Ram {
    at: *const u8,
    length: usize,
}

impl Ram {
    fn map(Holder { file, length }: &Holder, from: u64) -> Result<Self> {
        let length = length.saturating_sub(from) as usize;
        let size = NonZero::new(length).context("there is no RAM")?;
        // SAFETY: a new mapping, which nothing else knows of.
        let at = unsafe { mmap(None, size, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, file, from as i64) };
        Ok(Self { at: at.context("mapping the guest's RAM")?.as_ptr().cast(), length })
    }

    fn read(&self, buffer: &mut [u8], at: u64) -> Option<()> {
        let end = at.checked_add(buffer.len() as u64)?;
        (end <= self.length as u64).then_some(())?;
        // SAFETY: the mapping is as long as that; the guest does not run.
        unsafe { self.at.add(at as usize).copy_to_nonoverlapping(buffer.as_mut_ptr(), buffer.len()) };
        Some(())
    }
}

/// A virtual address space: where its tables are, and whether they have five levels.
#[derive(Clone, Copy)]
struct Space {
    cr3: u64,
    la57: bool,
}

/// Reads at a virtual address, as far as it is mapped (RAM below 3 GiB).
fn read(ram: &Ram, space: Space, mut address: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let piece = (length - bytes.len()).min(0x1000 - (address & 0xfff) as usize);
        let mut buffer = vec![0; piece];
        let there = translate(ram, space, address).map(|at| ram.read(&mut buffer, at));
        if !matches!(there, Some(Some(()))) {
            break;
        }
        bytes.extend(buffer);
        address = address.wrapping_add(piece as u64);
    }
    bytes
}

fn translate(ram: &Ram, space: Space, address: u64) -> Option<u64> {
    const FRAME: u64 = 0x000f_ffff_ffff_f000;
    let mut table = space.cr3 & FRAME;
    for shift in [48, 39, 30, 21, 12].into_iter().skip(usize::from(!space.la57)) {
        let mut entry = [0; 8];
        ram.read(&mut entry, table + (address >> shift & 0x1ff) * 8)?;
        let entry = u64::from_le_bytes(entry);
        if entry & 1 == 0 {
            return None;
        }
        if shift == 12 || (shift < 39 && entry & 1 << 7 != 0) {
            let within = (1 << shift) - 1;
            return Some(entry & FRAME & !within | address & within);
        }
        table = entry & FRAME;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_where_interrupts_are_off_is_told_from_one_where_they_are_on() {
        let log = |offset: &str, flags: &str| {
            format!(
                "[ 95.611724]  ? early_xen_iret_patch+0x5/0x5\r\n\
                 [ 95.613583] RIP: 0010:asm_sysvec_apic_timer_interrupt+{offset}/0x20\r\n\
                 [ 95.613596] Code: e9 65\r\n\
                 [ 95.613603] RSP: 0000:fffffe000003dfd8 EFLAGS: {flags}\r\n\
                 [ 95.613614] RAX: 00007f97ddfff010\r\n"
            )
        };
        let found = |offset, flags| interrupted_twice(&log(offset, flags)).map(str::to_owned);
        assert_eq!(found("0x0", "00010046").as_deref(), Some("asm_sysvec_apic_timer_interrupt"));
        assert_eq!(found("0x0", "00010246"), None);
        assert_eq!(found("0x4", "00010046"), None);
        assert_eq!(interrupted_twice("RIP: 0010:asm_sysvec_x+0x0/0x20 EFLAGS: 1"), None);
        assert_eq!(interrupted_twice("nothing of the kind"), None);
    }

    #[test]
    fn an_interrupted_kernel_is_known_by_its_flags() {
        let rip = 0xffff_ffff_8110_0000;
        let found = |kind, cs, flags| masked(&[7, kind, rip, cs, flags, 0xffa0_0000_0000_3b18, 0x18, 9]);
        assert_eq!(found(u64::MAX, 0x10, 0x46), Some(rip));
        assert_eq!(found(u64::MAX, 0x10, 0x246), None);
        assert_eq!(found(u64::MAX, 0x33, 0x46), None);
        assert_eq!(found(2, 0x10, 0x46), None);
    }
}
