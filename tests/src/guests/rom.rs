//! ROM images made from the assembled code.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::{elf, layout};
use crate::harness::bare::BareMachine;

core::arch::global_asm!(
    include_str!("asm/start.s"),
    include_str!("asm/patterns.s"),
    include_str!("asm/device.s"),
    include_str!("asm/work.s"),
    STATUS = const layout::STATUS,
    AREAS = const layout::AREAS,
    AREA_SIZE = const layout::AREA_SIZE,
    KERNEL = const layout::KERNEL,
    WAKING_VECTOR = const layout::WAKING_VECTOR,
    STOLEN = const layout::STOLEN,
    RAMS = const layout::RAMS,
    RAM_SIZE = const layout::RAM_SIZE,
    options(att_syntax)
);

unsafe extern "C" {
    static cpr_guest_start: u8;
    static cpr_guest_end: u8;
    static cpr_guest_pvh: u8;
}

/// Bytes of a ROM image; it ends at 4 GiB.
const ROM_SIZE: usize = 64 * 1024;
/// Where the first vCPU enters, and where the parameters are, from the start of the image.
const ENTRY: u16 = 4;
const PARAMETERS: usize = 8;
const RESET_VECTOR: usize = ROM_SIZE - 16;

/// The mode that the guest's vCPUs run in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Mode {
    /// Real mode, with `%gs` reaching over 4 GiB.
    Real = 16,
    /// Protected mode, flat, no paging.
    Protected = 32,
    /// Long mode, identity-mapped.
    Long = 64,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 3] = [Self::Real, Self::Protected, Self::Long];
}

/// What the guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Work {
    /// Counts as fast as it can, and checks that the time-stamp counter never goes back.
    Heartbeat = 0,
    /// Counts, and checks everything that it holds ([`Hold`]).
    Patterns = 1,
    /// Halts with interrupts off.
    Halted = 2,
    /// Counts until the power button is pressed, then powers off by ACPI.
    PowerOff = 3,
    /// Writes numbered lines to the serial port and sends back what it reads there.
    Console = 4,
    /// Halts with interrupts on, and counts at each timer interrupt.
    Idle = 5,
    /// Asks the entropy device for bytes, one request after the other, and counts the answers; an interrupt is a tick.
    Device = 6,
    /// Counts, and sleeps when it is told to ([`layout::SLEEP`]); being woken is a tick.
    Sleep = 7,
    /// Halts with interrupts on, and counts at each timer interrupt; there are so few that many such guests share a processor.
    Rest = 8,
}

/// What a [`Work::Patterns`] guest holds besides RAM and general registers; bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold(pub u32);

impl Hold {
    /// x87 and SSE registers.
    pub const FPU: Self = Self(1);
    /// Upper halves of the AVX registers.
    pub const AVX: Self = Self(2);
    /// Debug registers.
    pub const DEBUG: Self = Self(4);
    /// Model-specific registers.
    pub const MSRS: Self = Self(8);
    /// A periodic LAPIC timer.
    pub const TIMER: Self = Self(16);
    /// A LAPIC timer in TSC-deadline mode, in place of the periodic one.
    pub const DEADLINE: Self = Self(32);
    /// Where KVM tells of time that was stolen ([`layout::STOLEN`]); not under another hypervisor.
    pub const STOLEN: Self = Self(64);
    /// All that go together, where the vCPU has them.
    pub const ALL: Self = Self(31);
}

/// A guest: what it does, and in which mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guest {
    /// What it does.
    pub work: Work,
    /// The mode that it does it in.
    pub mode: Mode,
    /// What it holds.
    pub hold: Hold,
}

impl Guest {
    /// A guest that holds everything it can.
    pub const fn new(work: Work, mode: Mode) -> Self {
        Self { work, mode, hold: Hold::ALL }
    }

    /// A guest that holds patterns: all that this machine's KVM can hold.
    pub fn patterns(mode: Mode) -> Self {
        Self { hold: possible(), ..Self::new(Work::Patterns, mode) }
    }

    /// The code with its parameters.
    fn code(&self) -> Vec<u8> {
        let (start, end) = (&raw const cpr_guest_start, &raw const cpr_guest_end);
        let length = end as usize - start as usize;
        assert!(length <= RESET_VECTOR, "the guests' code has grown to {length} bytes");
        // SAFETY: both symbols are of one section of this program's read-only data, the end after the start.
        let mut code = unsafe { std::slice::from_raw_parts(start, length) }.to_vec();
        for (slot, value) in [self.mode as u32, self.work as u32, self.hold.0].into_iter().enumerate() {
            let at = PARAMETERS + slot * 4;
            code[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        code
    }

    /// The same guest as a kernel, with the PVH entry.
    pub fn kernel(&self) -> Vec<u8> {
        let entry = &raw const cpr_guest_pvh as usize - &raw const cpr_guest_start as usize;
        elf::kernel(&self.code(), layout::KERNEL, entry as u64)
    }

    /// The ROM image.
    pub fn image(&self) -> Vec<u8> {
        let code = self.code();
        let mut image = vec![0_u8; ROM_SIZE];
        image[..code.len()].copy_from_slice(&code);
        // A near jump from the reset vector: the code segment still ends at 4 GiB.
        let offset = ENTRY.wrapping_sub(RESET_VECTOR as u16 + 3);
        image[RESET_VECTOR] = 0xe9;
        image[RESET_VECTOR + 1..RESET_VECTOR + 3].copy_from_slice(&offset.to_le_bytes());
        image
    }

    /// Writes the ROM image into a directory and says where.
    pub fn write_to(&self, directory: &Path) -> io::Result<PathBuf> {
        let path = directory.join(format!("{:?}-{:?}.rom", self.work, self.mode).to_lowercase());
        std::fs::write(&path, self.image())?;
        Ok(path)
    }
}

/// What this machine's KVM can run of [`Hold::ALL`]. One that interprets the guest's code may know no XSAVE.
fn possible() -> Hold {
    static POSSIBLE: OnceLock<Hold> = OnceLock::new();
    *POSSIBLE.get_or_init(|| {
        let guest = Guest { work: Work::Patterns, mode: Mode::Protected, hold: Hold::AVX };
        let runs = BareMachine::start(&guest.image(), 1, 16 << 20).is_ok_and(|mut machine| {
            let deadline = Instant::now() + Duration::from_secs(5);
            while machine.ram.count(0) == 0 && machine.failure().is_none() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            machine.ram.count(0) > 0
        });
        if runs {
            return Hold::ALL;
        }
        println!("note: this KVM runs no XSAVE: the guests hold no AVX state");
        Hold(Hold::ALL.0 & !Hold::AVX.0)
    })
}
