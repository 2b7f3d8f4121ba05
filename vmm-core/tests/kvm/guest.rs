//! Real-mode guests of a few instructions, loaded at [`START`].

use std::arch::global_asm;

/// Where a program is loaded, and where the first vCPU starts.
pub const START: usize = 0x1000;
/// What [`COUNT`] counts in.
pub const COUNTER: usize = 0x2000;
/// The TSC that [`COUNT`] read last.
pub const TSC: usize = 0x2008;
/// The timer interrupts that were taken.
pub const TICKS: usize = 0x2010;
/// What the second vCPU of [`WAKE`] writes when it starts.
pub const WOKEN: usize = 0x2018;

/// A program's bytes.
#[derive(Clone, Copy)]
pub struct Program(unsafe extern "C" fn(), unsafe extern "C" fn());

impl Program {
    /// The bytes.
    pub fn bytes(self) -> &'static [u8] {
        let (start, end) = (self.0 as *const u8, self.1 as *const u8);
        // SAFETY: both are labels in one section, the second after the first, and code is readable.
        unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
    }
}

unsafe extern "C" {
    fn guest_count();
    fn guest_count_end();
    fn guest_timer();
    fn guest_timer_end();
    fn guest_deadline();
    fn guest_deadline_end();
    fn guest_wake();
    fn guest_wake_end();
    fn guest_wait();
    fn guest_wait_end();
}

/// Counts, notes the TSC, and exits by port 0x10, for ever.
pub const COUNT: Program = Program(guest_count, guest_count_end);
/// A periodic LAPIC timer (x2APIC), an exit a loop.
pub const TIMER: Program = Program(guest_timer, guest_timer_end);
/// A LAPIC timer in TSC deadline mode, armed anew by its handler.
pub const DEADLINE: Program = Program(guest_deadline, guest_deadline_end);
/// Sends INIT and SIPI (to 0x3000) to the second vCPU, and exits.
pub const WAKE: Program = Program(guest_wake, guest_wake_end);
/// Exits, halts with interrupts off, and exits for ever if that ends.
pub const WAIT: Program = Program(guest_wait, guest_wait_end);

global_asm!(
    ".pushsection .rodata.guests, \"a\"",
    ".global guest_count, guest_count_end, guest_timer, guest_timer_end",
    ".global guest_deadline, guest_deadline_end, guest_wake, guest_wake_end",
    ".global guest_wait, guest_wait_end",
    ".code16",
    "guest_count:",
    "inc dword ptr [0x2000]",
    "rdtsc",
    "mov dword ptr [0x2008], eax",
    "mov dword ptr [0x200c], edx",
    "out 0x10, al",
    "jmp guest_count",
    "guest_count_end:",
    // The LAPIC is on (x2APIC) by the registers that the vCPU starts with.
    "guest_timer:",
    "mov word ptr [0x100], 0x1080", // vector 0x40
    "mov word ptr [0x102], 0",
    "xor edx, edx",
    "mov ecx, 0x80f",
    "mov eax, 0x1ff",
    "wrmsr",
    "mov ecx, 0x832",
    "mov eax, 0x20040",
    "wrmsr",
    "mov ecx, 0x83e",
    "mov eax, 0xb",
    "wrmsr",
    "mov ecx, 0x838",
    "mov eax, 2000000",
    "wrmsr",
    "sti",
    "1: out 0x10, al",
    "jmp 1b",
    ".skip 0x80 - (. - guest_timer)",
    "inc dword ptr [0x2010]",
    "mov ecx, 0x80b",
    "xor eax, eax",
    "xor edx, edx",
    "wrmsr",
    "iret",
    "guest_timer_end:",
    "guest_deadline:",
    "mov word ptr [0x100], 0x1080",
    "mov word ptr [0x102], 0",
    "xor edx, edx",
    "mov ecx, 0x80f",
    "mov eax, 0x1ff",
    "wrmsr",
    "mov ecx, 0x832",
    "mov eax, 0x40040",
    "wrmsr",
    "call 3f",
    "sti",
    "1: out 0x10, al",
    "jmp 1b",
    ".skip 0x80 - (. - guest_deadline)",
    "inc dword ptr [0x2010]",
    "mov ecx, 0x80b",
    "xor eax, eax",
    "xor edx, edx",
    "wrmsr",
    "call 3f",
    "iret",
    "3: rdtsc",
    "add eax, 10000000",
    "adc edx, 0",
    "mov ecx, 0x6e0",
    "wrmsr",
    "ret",
    "guest_deadline_end:",
    // The second vCPU's code: mov byte ptr [0x2018], 1; out 0x10, al; jmp to itself.
    "guest_wake:",
    "mov dword ptr [0x3000], 0x201806c6",
    "mov dword ptr [0x3004], 0x10e601",
    "mov word ptr [0x3007], 0xfeeb",
    "mov ecx, 0x830",
    "mov edx, 1",
    "mov eax, 0x4500",
    "wrmsr",
    "mov eax, 0x4603",
    "wrmsr",
    "1: out 0x10, al",
    "jmp 1b",
    "guest_wake_end:",
    "guest_wait:",
    "out 0x10, al",
    "hlt",
    "1: out 0x10, al",
    "jmp 1b",
    "guest_wait_end:",
    ".code64",
    ".popsection",
);
