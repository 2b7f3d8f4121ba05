//! What the machine gives to functions: message-signalled interrupts, and doorbells that need no vCPU exit.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::devices::{DeviceError, eventfd};

/// What a function writes to signal an interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MsiMessage {
    /// Where to: a local APIC.
    pub address: u64,
    /// What: vector and delivery mode.
    pub data: u32,
}

/// One interrupt of a function, raised by its eventfd: by the device, or by the kernel for it (vhost, VFIO).
pub trait MsiVector: Send + Sync {
    /// A signal on it raises the interrupt, or makes it pending while it is masked.
    fn eventfd(&self) -> &EventFd;

    /// Sends this message for every signal from now on, and for a pending one at once. `None` masks: signals stay in the
    /// eventfd.
    fn route(&self, message: Option<MsiMessage>);

    /// Whether a signal waits for the vector to be unmasked.
    fn pending(&self) -> bool;

    /// Keeps signals in the eventfd until the next [`Self::route`], and remembers the message that they will send.
    fn hold(&self, message: Option<MsiMessage>);
}

/// Where vectors come from.
pub trait MsiVectors: Send + Sync {
    /// Makes a vector that this eventfd raises, masked.
    fn vector_on(&self, eventfd: EventFd) -> Result<Arc<dyn MsiVector>, DeviceError>;

    /// Makes a vector, masked.
    fn vector(&self) -> Result<Arc<dyn MsiVector>, DeviceError> {
        self.vector_on(eventfd::make("pci")?)
    }
}

/// Guest addresses whose writes only signal an eventfd.
pub trait Doorbells: Send + Sync {
    /// A write of any size to `address` signals `fd` from now on.
    fn assign(&self, address: u64, fd: &EventFd) -> std::io::Result<()>;

    /// Ends that.
    fn deassign(&self, address: u64, fd: &EventFd) -> std::io::Result<()>;
}
