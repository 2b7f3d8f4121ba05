//! A machine that is stopped for a handover.
//!
//! 1. Only a [`Stopped`] machine can be saved: it has no vCPU in the guest and no device at work.
//! 2. It holds the guest's [`Claim`]. Dropped with it, the guest goes back to what it was: every early return gives it
//!    its life back. Without it (offered, and not taken back) the guest never runs here again.

use std::time::Instant;

use super::run_state::RunState;
use super::state::{RunStateRecord, WakeRecord};
use super::turn::Turn;
use super::{Machine, MachineError};
use crate::cpr::blockers::Blocker;
use crate::cpr::format::StateWriter;
use crate::cpr::ownership::{Claim, Ownership, OwnershipError};
use crate::cpr::report::{Phase, Stopwatch, monotonic_ns};
use crate::x86::clock::ClockState;
use crate::x86::irqchip::VmState;

/// A machine that is stopped for a handover, until it is dropped or given away.
#[derive(Debug)]
pub struct Stopped<'a> {
    machine: &'a Machine,
    state: Turn<'a>,
    was: RunState,
    claim: Option<Claim>,
    stopped_ns: u64,
    quiesced: usize,
}

impl Machine {
    /// Stops vCPUs and devices for a handover; `watch` gets a lap for the vCPUs and one for each device.
    pub fn quiesce(&self, deadline: Instant, watch: &mut Stopwatch) -> Result<Stopped<'_>, MachineError> {
        let mut state = self.state.wait();
        let was = *state;
        if self.has_ended() {
            return Err(MachineError::Ended);
        }
        state.step(RunState::FinishMigrate)?;
        state.show();
        // From here on, dropping it undoes what was done.
        let claim = self.lock_claim().take();
        let mut stopped = Stopped { machine: self, state, was, claim, stopped_ns: 0, quiesced: 0 };
        self.vcpus.park(deadline)?;
        stopped.stopped_ns = monotonic_ns();
        watch.lap(Phase::Stop.name());
        if self.has_ended() {
            return Err(MachineError::Ended);
        }
        if was == RunState::Paused {
            // Whoever has it next knows for how long it was in its hands.
            self.vcpus.tell_of_stop(self.ram.memory());
        }
        if self.is_asleep() {
            stopped.was = RunState::Suspended;
        }
        for device in self.devices.all() {
            device.quiesce(deadline)?;
            stopped.quiesced += 1;
            watch.lap_of(Phase::Stop.name(), device.id());
        }
        // A device that failed has said so before it was quiesced, or says it to whoever has it next.
        if self.has_ended() {
            return Err(MachineError::Ended);
        }
        Ok(stopped)
    }
}

impl Stopped<'_> {
    /// Whether the guest ran before the stop.
    pub fn was_running(&self) -> bool {
        self.was == RunState::Running
    }

    /// Writes that the guest, which was suspended for this, is to be woken; nothing, if it did not sleep after all.
    pub fn save_wake(&self, out: &mut StateWriter) -> Result<(), MachineError> {
        if self.was == RunState::Suspended {
            out.put(0, &WakeRecord { wake: true })?;
        }
        Ok(())
    }

    /// What stands in the way of a reboot of the guest as it was when it was stopped, whatever it was when that was asked before.
    pub fn blocker_awake(&self) -> Option<Blocker> {
        if self.was == RunState::Suspended { None } else { self.machine.blockers_awake().next() }
    }

    /// `CLOCK_MONOTONIC` when the last vCPU had left the guest, in ns.
    pub fn stopped_ns(&self) -> u64 {
        self.stopped_ns
    }

    /// Writes everything that changes while the guest runs; `watch` gets a lap for each device.
    pub fn save(&self, out: &mut StateWriter, watch: &mut Stopwatch) -> Result<(), MachineError> {
        let machine = self.machine;
        for (index, vcpu) in machine.vcpus.save_all()?.iter().enumerate() {
            out.put(index as u32, vcpu)?;
        }
        out.put(0, &VmState::save(&machine.vm)?)?;
        watch.lap(Phase::Save.name());
        for device in machine.devices.all() {
            device.save(out)?;
            watch.lap_of(Phase::Save.name(), device.id());
        }
        out.put(0, &RunStateRecord { run_state: self.was })?;
        out.put(0, &ClockState::save(&machine.vm, machine.vcpus.host_tsc_khz())?)?;
        Ok(())
    }

    /// The proof that the guest is this process's, while it is.
    pub fn claim(&self) -> Option<&Claim> {
        self.claim.as_ref()
    }

    /// Offers the guest to whoever holds the other end of the word.
    pub fn offer(&mut self, ownership: &Ownership) -> Result<(), OwnershipError> {
        match self.claim.take() {
            Some(claim) => ownership.offer(claim),
            None => Err(OwnershipError::Offered),
        }
    }

    /// Takes the offer back. An error means that the guest was claimed: it is somebody else's for good.
    pub fn take_back(&mut self, ownership: &Ownership) -> Result<(), OwnershipError> {
        self.claim = Some(ownership.take_back()?);
        Ok(())
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        let Some(claim) = self.claim.take() else {
            *self.state = RunState::Postmigrate;
            return;
        };
        *self.machine.lock_claim() = Some(claim);
        for device in self.machine.devices.all().take(self.quiesced) {
            device.resume();
        }
        *self.state = self.was;
        // A vCPU may take this processor at once, and go to sleep.
        self.state.show();
        if self.was == RunState::Running {
            self.machine.vcpus.enter(self.machine.ram.memory());
        }
    }
}
