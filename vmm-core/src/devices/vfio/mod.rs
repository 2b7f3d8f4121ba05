//! Assigned devices: a PCI function of the host in the guest, by VFIO (the kernel's Documentation/driver-api/vfio.rst).
//!
//! 1. Over a transfer or an exec the device is not stopped, reset or bound again. Its DMA goes on into RAM that stays where it
//!    is; its interrupts gather in their eventfds while nobody listens, and are given to the guest by whoever has it next.
//! 2. What the kernel was told stays told: who adopts a device makes no call that sets it up. It takes over the mappings, which
//!    then count as its memory, before the guest is claimed; a source that takes its guest back takes them back too.
//! 3. The guest sees registers of its own where the host's are not its business: BARs, MSI and MSI-X, power states. The rest
//!    is the device's. What is not known to be harmless is hidden.
//! 4. The device's memory space stays enabled whatever the guest says: a mapping of a BAR must never go away under a vCPU.
//!
//! `config` is what it is made with, `ioctls` the system calls, `handle` an open device, `space` where its DMA goes, by
//! `type1` or by `iommufd`, `limits` what may be pinned for it, `open` finds all of them. `registers` is the configuration space, `rom` the ROM,
//! `bars` what of the BARs the guest reaches without an exit, `interrupts` brings them to the guest, `notices` what the host says to its owner; `device` is all of it on
//! the bus, `wires` what it needs of the machine.

mod bars;
mod config;
mod device;
mod handle;
mod interrupts;
mod ioctls;
mod iommufd;
mod limits;
mod notices;
mod open;
mod registers;
mod rom;
mod space;
mod state;
mod type1;
mod wires;

pub use self::config::{PciAddress, VfioConfig};
pub use self::device::VfioPci;
pub use self::open::{Assigned, Opener, forget};
pub use self::space::Mappings;
pub use self::state::VfioState;
pub use self::wires::{Files, Levels, Notice, Slots, Tell, VfioWires};
