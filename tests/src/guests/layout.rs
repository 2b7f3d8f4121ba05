//! Where a guest keeps what it wants to be seen, as guest-physical addresses.
//!
//! The status page at [`STATUS`]: `u64` [`MAGIC`], `u32` vCPUs that came up, `u32` what is held ([`super::Hold`]).
//! Each vCPU has an area of [`AREA_SIZE`] bytes at [`area`], in the order in which they came up.

/// The status page.
pub const STATUS: u64 = 0x8000;
/// First word of the status page once the tables stand.
pub const MAGIC: u64 = 0x5453_4555_4752_5043;
/// Offset in the status page: `u32`, vCPUs that came up.
pub const ONLINE: u64 = 8;
/// Offset in the status page: `u32`, what the patterns guest really holds here.
pub const HELD: u64 = 12;

/// The first vCPU's area.
pub const AREAS: u64 = 0x2_0000;
/// Bytes of an area.
pub const AREA_SIZE: u64 = 0x1000;

/// Offset in an area: `u64`, the heartbeat.
pub const COUNT: u64 = 0x00;
/// Offset in an area: `u64`, the last time-stamp counter read.
pub const TSC: u64 = 0x08;
/// Offset in an area: `u32`, what is wrong; 0 while nothing is.
pub const ERROR: u64 = 0x10;
/// Offset in an area: `u32`, which one is wrong (vector, register, MSR, byte).
pub const DETAIL: u64 = 0x14;
/// Offset in an area: `u64`, timer interrupts taken.
pub const TICKS: u64 = 0x18;
/// Offset in an area: `u64`, the longest step between two readings of the time-stamp counter; may be cleared from outside.
pub const GAP: u64 = 0x20;
/// Offset in an area: `u64`, rounds of checks that passed.
pub const SWEEPS: u64 = 0x28;
/// Offset in an area: `u64`, what was found where something is wrong.
pub const FOUND: u64 = 0x30;

/// Offset in an area: `u32`, set from outside: 1 has a [`super::Work::Sleep`] guest sleep, 2 sleep without a waking vector, 3 set an
/// alarm that wakes it before, 4 have a byte at its serial port wake it.
pub const SLEEP: u64 = 0x48;
/// Offset in an area: `u32`, the alarm: bytes of seconds, minutes and hours as the CMOS clock takes them.
pub const ALARM: u64 = 0x4c;

/// Offset in an area: `u32`s, what the debug registers must hold, by their number.
pub const DEBUG_REGISTERS: u64 = 0x100;
/// Offset in an area: KVM's steal time, `u64` ns first ([`super::Hold::STOLEN`]).
pub const STOLEN: u64 = 0x200;
/// Offset in an area: the XSAVE image that the floating-point state must equal.
pub const FPU_WANTED: u64 = 0x400;

/// RAM that the first vCPU of a patterns guest holds a pattern in; the next ones' follow.
pub const RAMS: u64 = 0x10_0000;
/// Bytes of it for each vCPU.
pub const RAM_SIZE: u64 = 0x1_0000;

/// Where a guest that is booted as a kernel is loaded.
pub const KERNEL: u64 = 0x20_0000;
/// Where a guest says at which address it goes on after sleep: in the FACS of the ACPI tables.
pub const WAKING_VECTOR: u64 = 0xe_004c;

/// The area of the `index`th vCPU.
pub const fn area(index: u64) -> u64 {
    AREAS + index * AREA_SIZE
}
