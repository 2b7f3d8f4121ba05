//! The devices a guest lives with: one folder a device, the same file names in each.
//!
//! 1. A device knows nothing of modes: it can stop, save itself, rebuild itself from state and kept descriptors, go on,
//!    and say what blocks it.
//! 2. Between [`Device::quiesce`] and [`Device::resume`] a device takes nothing from outside and gives nothing out.
//! 3. `device.rs` is the device, `state.rs` its wire form.

pub mod chardev;
pub mod eventfd;
pub mod given;
pub mod i8042;
pub mod pci;
pub mod pm;
pub mod rtc;
pub mod serial;
pub mod vfio;
pub mod virtio;

use std::sync::{Arc, Mutex};
use std::time::Instant;

use event_manager::MutEventSubscriber;

use crate::cpr::Mode;
use crate::cpr::blockers::Blocker;
use crate::cpr::fds::{FdError, FdTable};
use crate::cpr::format::{FormatError, StateReader, StateWriter};

/// Why a device could not be made, stopped, saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A system call failed.
    #[error("{device}: {doing}: {source}")]
    Io {
        /// The device's id.
        device: String,
        /// What was being done, to what.
        doing: String,
        /// What the kernel answered.
        source: std::io::Error,
    },
    /// The saved state holds something that the device cannot be in.
    #[error("{device}: saved state is not possible: {found}; expected {expected}")]
    State {
        /// The device's id.
        device: String,
        /// What the state says.
        found: String,
        /// What it may say.
        expected: String,
    },
    /// What it is to be on is not what it can be on.
    #[error("{device}: {found}; expected {expected}")]
    Unfit {
        /// The device's id.
        device: String,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// What was begun did not end by the deadline of the stop.
    #[error("{device}: {what}, not answered in time")]
    Busy {
        /// The device's id.
        device: String,
        /// What is outstanding.
        what: String,
    },
    /// What it is on is not what it was when the guest was saved.
    #[error(
        "{device}: {what}; if it lies elsewhere now, give --set {device}.path=PATH; if it was changed on purpose, \
         --set {device}.changed=accept"
    )]
    Changed {
        /// The device's id.
        device: String,
        /// What differs.
        what: String,
    },
    /// A section of the state could not be read.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A named descriptor is missing or not what it claims to be.
    #[error(transparent)]
    Fd(#[from] FdError),
}

impl DeviceError {
    /// Makes the error of a saved state that `device` cannot be in out of what was found and what was expected.
    pub fn impossible(device: &str) -> impl Fn((String, String)) -> Self {
        move |(found, expected)| Self::State { device: device.to_owned(), found, expected }
    }

    /// Makes the error of what `device` cannot be on out of what was found and what was expected.
    pub fn unfit(device: &str) -> impl Fn((String, String)) -> Self {
        move |(found, expected)| Self::Unfit { device: device.to_owned(), found, expected }
    }

    /// The message without the device's id, for where that is said anyway.
    pub fn without_device(&self) -> String {
        match self {
            Self::Io { doing, source, .. } => format!("{doing}: {source}"),
            other => other.to_string(),
        }
    }

    /// Makes the error of a system call.
    pub fn io<E: Into<std::io::Error>>(device: &str, doing: impl Into<String>) -> impl FnOnce(E) -> Self {
        let (device, doing) = (device.to_owned(), doing.into());
        move |source| Self::Io { device, doing, source: source.into() }
    }
}

/// An interrupt line of the machine, as a device sees it.
///
/// Setting it is synchronous: when `set` returns, the interrupt chips have seen the level, so a stopped machine has no
/// interrupt in flight.
pub trait IrqLine: Send + Sync {
    /// Drives the line high or low. An edge is high, then low.
    fn set(&self, high: bool);
}

/// What a guest asks of the machine by writing to a register, or by what it has enabled there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestRequest {
    /// ACPI S3.
    Sleep,
    /// To be woken if it sleeps: an event that is to wake it is there.
    Wake,
    /// ACPI S5.
    PowerOff,
    /// Reset register, keyboard controller or triple fault.
    Reset,
}

/// Where a device sends a [`GuestRequest`]. Called on a vCPU thread: must not wait for the vCPU to stop.
pub type RequestSink = Arc<dyn Fn(GuestRequest) + Send + Sync>;

/// By what a device tells another one of an event. Called with the device's lock held: must not come back to it.
pub type Signal = Arc<dyn Fn() + Send + Sync>;

/// Something in the main thread's event loop.
pub type Subscriber = Arc<Mutex<dyn MutEventSubscriber + Send>>;

/// What the machine does with every device.
pub trait Device: Send + Sync {
    /// The device's id, unique in the machine and stable across versions (`serial0`, `rtc`, `pm`).
    fn id(&self) -> &str;

    /// Stops taking input from and giving output to the outside, with nothing left in flight. All vCPUs are stopped. What
    /// is not done by the deadline is an error; after one the device is as if it had not been asked.
    fn quiesce(&self, _deadline: Instant) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Goes on after [`Self::quiesce`] or after [`Self::load`]; does no harm to a device that is at work.
    fn resume(&self) {}

    /// Writes the device's sections. Called between `quiesce` and `resume`.
    fn save(&self, out: &mut StateWriter) -> Result<(), DeviceError>;

    /// Reads the device's sections into a device fresh from its constructor. The interrupt chips are already loaded.
    fn load(&self, state: &mut StateReader) -> Result<(), DeviceError>;

    /// Registers (duplicates of) the descriptors that must stay open over a handover in this mode.
    fn descriptors(&self, _mode: Mode, _fds: &mut FdTable) -> Result<(), DeviceError> {
        Ok(())
    }

    /// What it has in the event loop, if it has something there. It is asked once.
    fn subscriber(&self) -> Option<Subscriber> {
        None
    }

    /// The guest lives on elsewhere: dropping this leaves socket files and terminals as they are.
    fn hand_over(&self) {}

    /// What stands in the way of a reboot of a guest that is awake: its drivers do not expect to find the device as after a reset.
    /// Asleep they do.
    fn blocker_awake(&self) -> Option<Blocker> {
        None
    }

    /// What else stands in the way of a handover in this mode.
    fn blockers(&self, _mode: Mode) -> Vec<Blocker> {
        Vec::new()
    }
}
