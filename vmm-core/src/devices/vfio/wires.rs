//! What an assigned device needs of the machine.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::devices::pci::msi::MsiVectors;

/// Guest addresses that show something of this process's memory, without an exit.
pub trait Slots: Send + Sync {
    /// Shows `size` bytes at `host` at the guest address `guest`; gives the number to undo it by. All of them in whole pages.
    ///
    /// # Safety
    ///
    /// They must stay mapped until it is undone: the guest reads and writes them.
    unsafe fn show(&self, guest: u64, host: u64, size: u64) -> io::Result<u32>;

    /// Undoes it.
    fn hide(&self, slot: u32) -> io::Result<()>;
}

/// Interrupt lines that the kernel drives: high when an eventfd is signalled, low when the guest has dealt with it, which
/// another eventfd then hears.
pub trait Levels: Send + Sync {
    /// Has `signal` drive the line, and `dealt` hear of its end.
    fn attach(&self, gsi: u32, signal: &EventFd, dealt: &EventFd) -> io::Result<()>;

    /// Ends that; signals stay in the eventfd.
    fn detach(&self, gsi: u32, signal: &EventFd) -> io::Result<()>;
}

/// The devices and groups that the kernel's KVM knows of.
pub trait Files: Send + Sync {
    /// Makes one known; no harm if it is.
    fn add(&self, file: BorrowedFd<'_>) -> io::Result<()>;

    /// Ends that; no harm if it is not.
    fn remove(&self, file: BorrowedFd<'_>) -> io::Result<()>;
}

/// What the host says of a device, by its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// It wants the device back, and waits.
    Wanted(String),
    /// The device has failed in a way that nothing can be done about: what it does with the guest's memory is not known.
    Failed(String),
}

/// Who is told that. It is called on the main thread.
pub type Tell = Arc<dyn Fn(Notice) + Send + Sync>;

/// All of it.
#[derive(Clone)]
pub struct VfioWires {
    /// Where BARs show.
    pub slots: Arc<dyn Slots>,
    /// Where message-signalled interrupts go.
    pub msi: Arc<dyn MsiVectors>,
    /// Where INTx goes.
    pub levels: Arc<dyn Levels>,
    /// Who tells KVM of the device.
    pub files: Arc<dyn Files>,
    /// Who hears what the host says.
    pub tell: Tell,
}
