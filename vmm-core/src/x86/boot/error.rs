//! Why a guest cannot be booted.

use std::path::PathBuf;

use vm_memory::GuestMemoryError;

use crate::x86::acpi::AcpiError;

/// Why a guest cannot be booted. `what` is `kernel` or `initrd`; addresses and sizes are in bytes.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file cannot be read.
    #[error("{what} {}: {source}", path.display())]
    Read {
        /// Which file.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
        /// What the kernel answered.
        source: std::io::Error,
    },
    /// The path leads to something else than a file.
    #[error("{what} {}: not a regular file", path.display())]
    NotAFile {
        /// Which file.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The file ends before what it must hold.
    #[error("{what} {}: too short: {size} bytes, expected {needed} or more", path.display())]
    TooShort {
        /// Which file.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// Its size.
        size: u64,
        /// What it takes.
        needed: u64,
    },
    /// The file is something else.
    #[error("kernel {}: not a kernel: found {found}, expected a bzImage or an x86-64 ELF", path.display())]
    NotAKernel {
        /// Where it is.
        path: PathBuf,
        /// What says so.
        found: String,
    },
    /// The kernel has no 64-bit entry.
    #[error("kernel {}: has no 64-bit entry ({found}); use a 64-bit kernel of protocol 2.12 or later", path.display())]
    Only32Bit {
        /// Where it is.
        path: PathBuf,
        /// What says so.
        found: String,
    },
    /// A part of the file is not where it can be.
    #[error("kernel {}: {found}; expected {expected}", path.display())]
    Malformed {
        /// Where it is.
        path: PathBuf,
        /// What the file says.
        found: String,
        /// What it may say.
        expected: String,
    },
    /// There is too little RAM.
    #[error("{what} {}: does not fit: needs {start:#x} to {end:#x}, RAM for it ends at {ram_end:#x}; give the guest more", path.display())]
    DoesNotFit {
        /// Which file.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// First address needed.
        start: u64,
        /// First address behind it.
        end: u64,
        /// First address behind the RAM that it may use.
        ram_end: u64,
    },
    /// There is too little RAM between the kernel and where its initrd may end.
    #[error("initrd {}: does not fit: {size} bytes, but only {start:#x} to {end:#x} is free for it; give the guest more RAM", path.display())]
    InitrdDoesNotFit {
        /// Where it is.
        path: PathBuf,
        /// Its size.
        size: u64,
        /// First address behind the kernel.
        start: u64,
        /// First address behind what the kernel can reach.
        end: u64,
    },
    /// The loader refuses the kernel.
    #[error("kernel {}: {source}", path.display())]
    Load {
        /// Where it is.
        path: PathBuf,
        /// Why.
        source: linux_loader::loader::Error,
    },
    /// The command line is longer than the kernel takes.
    #[error("command line is {size} bytes long; this kernel takes {max}")]
    CmdlineTooLong {
        /// Its size.
        size: u64,
        /// What the kernel takes.
        max: u64,
    },
    /// The command line would end early.
    #[error("command line holds a zero byte at {at}")]
    CmdlineZero {
        /// Where.
        at: usize,
    },
    /// Guest memory is not where it should be.
    #[error("writing {what} to guest memory: {source}")]
    Memory {
        /// What was written.
        what: &'static str,
        /// Why it failed.
        source: GuestMemoryError,
    },
    /// The tables cannot be made.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// KVM refuses the vCPU's first state.
    #[error("{doing}: {source}")]
    Kvm {
        /// The ioctl, and what for.
        doing: &'static str,
        /// What KVM answered.
        source: kvm_ioctls::Error,
    },
    /// KVM refuses a boot MSR.
    #[error("KVM_SET_MSRS for boot: MSR {index:#x} was refused")]
    Msr {
        /// Which.
        index: u32,
    },
}
