//! From files to a machine that is about to run them: kernel, initrd, command line, memory map, first registers.
//!
//! 1. [`load`] writes to guest memory what a kernel needs; [`setup_vcpu`] and [`enter_at`] do the rest to the vCPUs.
//! 2. The files are not trusted: every length and address in them is checked before it is used, and what is wrong is
//!    named.
//! 3. A firmware is given the bare machine: reset values, and no tables.
//!
//! What is followed: the Linux x86 boot protocol (64-bit entry, `Documentation/arch/x86/boot.rst`) and the PVH start
//! info of Xen (`xen/include/public/arch-x86/hvm/start_info.h`).

mod bzimage;
mod elf;
mod error;
mod file;
mod initrd;
mod map;
mod params;
mod regs;
mod vcpu;

use vm_memory::GuestMemoryMmap;

pub use self::error::BootError;
pub use self::vcpu::{enter_at, setup_vcpu};
use crate::config::BootConfig;
use crate::x86::{acpi, layout};

/// Where and how the boot vCPU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootEntry {
    /// A firmware's: real mode, 16 bytes below 4 GiB.
    ResetVector,
    /// Linux's 64-bit entry: long mode, the lower 4 GiB mapped one to one.
    Linux64 {
        /// First instruction.
        entry: u64,
        /// Address of the zero page (`boot_params`), passed in RSI.
        zero_page: u64,
    },
    /// PVH's 32-bit entry: protected mode without paging.
    Pvh {
        /// First instruction.
        entry: u64,
        /// Address of `hvm_start_info`, passed in EBX.
        start_info: u64,
    },
    /// Where a guest wants to go on after sleep: real mode.
    Waking {
        /// First instruction, below 1 MiB.
        vector: u32,
    },
}

/// A kernel in guest memory.
struct Kernel {
    /// Where it starts.
    entry: Entry,
    /// First address behind everything it needs before it reads its memory map.
    end: u64,
    /// Last address that its initrd may touch.
    initrd_max: u64,
    /// Most bytes of its command line, without the terminating zero.
    cmdline_max: u64,
}

/// Where a kernel starts, and by which protocol.
enum Entry {
    Linux64 { entry: u64, header: linux_loader::bootparam::setup_header },
    Pvh { entry: u64 },
}

/// An initrd in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Initrd {
    address: u64,
    size: u64,
}

/// Most bytes of a command line that Linux keeps on x86, without the terminating zero (`COMMAND_LINE_SIZE`).
const LINUX_CMDLINE_MAX: u64 = 2047;

/// Puts what `boot` names into guest memory and says where the boot vCPU starts.
///
/// `memory` holds `ram_size` bytes of RAM as [`layout::ram_ranges`] splits them. A kernel also gets ACPI tables for
/// `cpus` vCPUs; a firmware, which the machine maps as a ROM, gets nothing.
pub fn load(
    boot: &BootConfig,
    memory: &GuestMemoryMmap,
    ram_size: u64,
    cpus: u16,
) -> Result<BootEntry, BootError> {
    let Some(path) = &boot.kernel else { return Ok(BootEntry::ResetVector) };
    let ram_end = layout::low_ram_end(ram_size);

    let mut file = file::BootFile::open("kernel", path)?;
    let kernel = if file.is_elf()? {
        elf::load(&mut file, memory, ram_end)?
    } else {
        bzimage::load(&mut file, memory, ram_end)?
    };
    let initrd = match &boot.initrd {
        Some(path) => Some(initrd::load(path, memory, &kernel, ram_end)?),
        None => None,
    };
    params::write_cmdline(&boot.cmdline, kernel.cmdline_max, memory)?;
    let rsdp = acpi::write(memory, cpus, ram_size)?;
    regs::write_tables(memory, matches!(kernel.entry, Entry::Linux64 { .. }))
        .map_err(|source| BootError::Memory { what: "descriptors and page tables", source })?;
    match kernel.entry {
        Entry::Linux64 { entry, header } => {
            params::write_zero_page(header, initrd, rsdp, memory, ram_size)?;
            Ok(BootEntry::Linux64 { entry, zero_page: layout::ZERO_PAGE_START })
        }
        Entry::Pvh { entry } => {
            params::write_start_info(initrd, rsdp, memory, ram_size)?;
            Ok(BootEntry::Pvh { entry, start_info: layout::PVH_INFO_START })
        }
    }
}

#[cfg(test)]
mod tests;
