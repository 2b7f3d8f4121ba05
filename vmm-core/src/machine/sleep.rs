//! A guest that sleeps (ACPI S3), and how it is woken.
//!
//! 1. Asleep, its vCPUs are stopped; RAM and devices stay as they are. Its own drivers have stopped the devices, and start them again.
//! 2. From the instant at which it went to sleep it is handed over as asleep, also where its owner has not heard of it yet.
//! 3. Woken, its vCPUs and interrupt chips are as after a reset. The first vCPU goes on in real mode where the guest has said, or at
//!    the reset vector where a firmware sees to that; the others wait to be started. Their TSCs have gone on.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

use super::run_state::{IllegalStep, RunState};
use super::{Machine, MachineError, STOP};
use crate::devices::Device;
use crate::x86::acpi;
use crate::x86::boot::BootEntry;

impl Machine {
    /// Stops the vCPUs of a guest that went to sleep. `false` if it does not sleep any more.
    pub fn suspend(&self) -> Result<bool, MachineError> {
        let Ok(mut state) = self.state.wait_unless_handed_over(RunState::Suspended) else {
            // Who hands it over sees that it sleeps.
            return Ok(false);
        };
        if *state == RunState::Running && self.is_asleep() {
            state.step(RunState::Suspended)?;
            if let Err(error) = self.vcpus.park(Instant::now() + STOP) {
                *state = RunState::Running;
                // It may ask again.
                self.asleep.store(false, SeqCst);
                self.vcpus.enter(self.ram.memory());
                return Err(error.into());
            }
        }
        Ok(*state == RunState::Suspended)
    }

    /// Whether it was suspended only to be saved, so that it is to be woken now. It is asked once.
    pub fn is_to_be_woken(&self) -> bool {
        self.wake_due.swap(false, SeqCst)
    }

    /// Whether it is to be woken, and was not yet.
    pub fn will_be_woken(&self) -> bool {
        self.wake_due.load(SeqCst)
    }

    /// Wakes a guest that sleeps. An error leaves it asleep; one without a place to go on at has ended, and is handed over no more.
    pub fn wake(&self) -> Result<(), MachineError> {
        let mut state = self.state.wait_unless_handed_over(RunState::Running)?;
        if *state != RunState::Suspended {
            return Err(IllegalStep { from: *state, to: RunState::Running }.into());
        }
        let entry = if self.config.boot.firmware.is_some() {
            BootEntry::ResetVector
        } else {
            let vector = acpi::waking_vector(self.ram.memory());
            let vector = vector.inspect_err(|_| self.ended.store(true, SeqCst))?;
            BootEntry::Waking { vector }
        };
        self.vcpus.restart(&entry)?;
        self.fresh_chips.load(&self.vm)?;
        self.devices.pm.wake();
        // Lines that are high are so in the new chips, too.
        self.devices.all().for_each(Device::resume);
        state.step(RunState::Running)?;
        self.asleep.store(false, SeqCst);
        self.vcpus.enter(self.ram.memory());
        Ok(())
    }
}
