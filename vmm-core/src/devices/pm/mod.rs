//! ACPI power management: PM1 status, enable and control registers, general-purpose events, sleep, the power button, and the
//! reset register.
//!
//! 1. The SCI is high exactly while an event is both set in its status and enabled (ACPI 6.5, 4.8.3.1, 4.8.4.1).
//! 2. The machine is in ACPI mode from the start and stays there: `SCI_EN` reads as set.
//! 3. An event while the device is quiesced is kept, and seen by whoever resumes it.
//! 4. Whoever wakes the guest sets `WAK_STS` before it goes on. An event that has the SCI go high asks for that, and whoever
//!    puts a guest to sleep, or finds it asleep, looks whether one is there.
//! 5. After a load the SCI is driven anew from the registers.

mod device;
mod registers;
mod state;

pub use self::device::Pm;
pub use self::registers::Event;
pub use self::state::PmState;
