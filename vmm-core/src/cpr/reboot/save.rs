//! The old process's side: the guest's state to where it waits, its RAM left in place, copied there, or preserved by the kernel.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use super::medium::{Medium, Preserved};
use super::place::Place;
use super::stamp::{RamStamp, Stamp};
use crate::cpr::Mode;
use crate::cpr::error::{HandoverError, InPhase};
use crate::cpr::format::StateWriter;
use crate::cpr::observer::Observer;
use crate::cpr::report::{Phase, Report, Stopwatch};
use crate::cpr::transfer::channel::was_cancelled;
use crate::cpr::transfer::source::Limits;
use crate::machine::{Machine, Stopped};
use crate::memory::{RamBlock, RamFate, StampLocation};

/// What is done with a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Where it goes.
    pub place: Place,
    /// What becomes of its RAM.
    pub fate: RamFate,
    /// Whether whoever loads it wakes it, if it sleeps.
    pub wake: bool,
}

/// Saves a guest. An error leaves it running.
pub fn save(
    machine: &Machine,
    &Order { ref place, fate, wake }: &Order,
    limits: Limits,
    cancel: &OwnedFd,
    observer: &dyn Observer,
    mut watch: Stopwatch,
) -> Result<Report, HandoverError> {
    observer.phase(Phase::Prepare);
    let block = machine.ram_block();
    let block = block.ok_or_else(|| HandoverError::new(Phase::Prepare, "the guest has no RAM"))?;
    let (medium, location) = Medium::prepare(machine, block, place, fate)?;
    let mut writer = StateWriter::new(machine.header(Mode::CprReboot));
    machine.describe(Mode::CprReboot, &mut writer).in_phase(Phase::Prepare)?;
    watch.lap(Phase::Prepare.name());
    let cancelled = || was_cancelled(cancel.as_fd());
    if cancelled() {
        return Err(HandoverError::cancelled(Phase::Prepare));
    }

    let mut stopped = machine.quiesce(Instant::now() + limits.downtime, &mut watch).in_phase(Phase::Stop)?;
    if let Some(blocker) = stopped.blocker_awake() {
        return Err(HandoverError::new(Phase::Stop, format!("the guest woke up meanwhile: {blocker}")));
    }
    stopped.save(&mut writer, &mut watch).in_phase(Phase::Save)?;
    if wake {
        stopped.save_wake(&mut writer).in_phase(Phase::Save)?;
    }
    let (mut at, mut ram_copied) = (0, 0);
    if let Some(written) = medium.copy_ram(block, &cancelled, &|copied, total| observer.ram(copied, total))? {
        writer.put(0, &written.state).in_phase(Phase::Save)?;
        (at, ram_copied) = (written.end, written.ram);
        watch.lap("copy RAM");
    }
    let (stamp, section) = stamp_ram(machine, block, &location, &stopped)?;
    writer.put(0, &section).in_phase(Phase::Save)?;
    let state = writer.finish().in_phase(Phase::Save)?;
    let state_bytes = state.len() as u64;
    medium.write(&state).in_phase(Phase::Save)?;
    watch.lap("encode");
    if cancelled() {
        return Err(HandoverError::cancelled(Phase::Save));
    }
    stopped.offer(stamp.ownership()).in_phase(Phase::Handover)?;
    let may_go_back = medium.can_be_taken_back();
    let mut published = medium.publish(&location, at, state).in_phase(Phase::Handover);
    if let Ok(Some(preserved)) = &published
        && !preserved.is_kept()
    {
        published = Err(HandoverError::new(Phase::Handover, "the guest's keeper has ended"));
    }
    if published.is_err() || (may_go_back && cancelled()) {
        // Taken back, the offer makes what was published worthless: nobody can load it any more.
        stopped.take_back(stamp.ownership()).in_phase(Phase::Handover)?;
        // The guest goes on before what takes longer.
        drop(stopped);
        if let Err(error) = stamp.persist() {
            tracing::error!(
                "that the guest was taken back may not be on disk: {error}; remove the state file"
            );
        }
        published?;
        return Err(HandoverError::cancelled(Phase::Handover));
    }
    drop(stopped);
    // Given away: nothing that fails from here on is the guest's concern.
    published?.into_iter().for_each(Preserved::leave);
    // The lock goes with this process at the latest.
    if let Err(error) = block.release_lock() {
        tracing::warn!("{error}");
    }
    watch.lap(Phase::Handover.name());
    Ok(Report {
        mode: Mode::CprReboot,
        downtime_us: None,
        clock: None,
        total_us: watch.total(),
        phases: watch.laps().to_vec(),
        state_bytes,
        descriptors: 0,
        vcpus: machine.vcpu_count(),
        ram_kept: if fate == RamFate::Copied { 0 } else { machine.ram_size() },
        ram_copied,
    })
}

/// Marks the RAM as the one that goes with the file about to be written, and with no other.
fn stamp_ram(
    machine: &Machine,
    block: &RamBlock,
    location: &StampLocation,
    stopped: &Stopped<'_>,
) -> Result<(Stamp, RamStamp), HandoverError> {
    let StampLocation { file, offset, granularity } = location;
    let (uuid, size) = (machine.config().uuid, block.size());
    let claim =
        stopped.claim().ok_or_else(|| HandoverError::new(Phase::Save, "the guest is not this process's"))?;
    let stamp = Stamp::create(file, *offset, *granularity, uuid, size, claim).in_phase(Phase::Save)?;
    let section = stamp.renew(uuid, size, claim);
    Ok((stamp, section))
}
