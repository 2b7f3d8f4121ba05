//! ACPI power management: PM1 status, enable and control registers, sleep, the power button, and the reset register.
//!
//! 1. The SCI is high exactly while an event is both set in the status and enabled (ACPI 6.5, 4.8.3.1).
//! 2. The machine is in ACPI mode from the start and stays there: `SCI_EN` reads as set.
//! 3. A press of the power button while the device is quiesced is kept, and seen by whoever resumes it.
//! 4. Whoever wakes the guest sets `WAK_STS` before it goes on, and what woke it, if that has a bit.
//! 5. After a load the SCI is driven anew from the registers.

mod device;
mod registers;
mod state;

pub use self::device::Pm;
pub use self::state::PmState;
