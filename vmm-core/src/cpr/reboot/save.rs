//! The old process's side: the guest's state to a file, its RAM left in place.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use super::file::StateFile;
use super::stamp::{RamStamp, Stamp};
use crate::cpr::Mode;
use crate::cpr::error::{HandoverError, InPhase};
use crate::cpr::format::StateWriter;
use crate::cpr::observer::Observer;
use crate::cpr::report::{Phase, Report, Stopwatch};
use crate::cpr::transfer::channel::was_cancelled;
use crate::cpr::transfer::source::Limits;
use crate::machine::{Machine, Stopped};
use crate::memory::{RamBlock, StampLocation};

/// Room that is reserved before the guest stops: for the machine, and for each vCPU. More than state has ever taken.
const ROOM: u64 = 1 << 20;
const ROOM_PER_VCPU: u64 = 64 << 10;

/// Saves a guest to a file. An error leaves the guest running.
pub fn save(
    machine: &Machine,
    path: &Path,
    limits: Limits,
    cancel: &OwnedFd,
    observer: &dyn Observer,
    mut watch: Stopwatch,
) -> Result<Report, HandoverError> {
    observer.phase(Phase::Prepare);
    let room = ROOM + ROOM_PER_VCPU * u64::from(machine.vcpu_count());
    let mut file = StateFile::create(path).in_phase(Phase::Prepare)?;
    file.reserve(room).in_phase(Phase::Prepare)?;
    let location = machine.ram_block().and_then(|block| Some((block, block.stamp_location()?)));
    let Some((block, location)) = location else {
        return Err(HandoverError::new(Phase::Prepare, "the guest's RAM would not outlive this process"));
    };
    let mut writer = StateWriter::new(machine.header(Mode::CprReboot));
    machine.describe(Mode::CprReboot, &mut writer).in_phase(Phase::Prepare)?;
    watch.lap(Phase::Prepare.name());
    if was_cancelled(cancel.as_fd()) {
        return Err(HandoverError::cancelled(Phase::Prepare));
    }

    let mut stopped = machine.quiesce(Instant::now() + limits.downtime, &mut watch).in_phase(Phase::Stop)?;
    stopped.save(&mut writer, &mut watch).in_phase(Phase::Save)?;
    let (stamp, section) = stamp_ram(machine, block, &location, &stopped)?;
    writer.put(0, &section).in_phase(Phase::Save)?;
    let state = writer.finish().in_phase(Phase::Save)?;
    watch.lap("encode");
    stopped.offer(stamp.ownership()).in_phase(Phase::Handover)?;
    let published = file.publish(&state);
    if was_cancelled(cancel.as_fd()) || published.is_err() {
        // Taken back, the offer makes the file worthless, should it be there: nobody can load it any more.
        stopped.take_back(stamp.ownership()).in_phase(Phase::Handover)?;
        published.in_phase(Phase::Handover)?;
        return Err(HandoverError::cancelled(Phase::Handover));
    }
    drop(stopped);
    // Given away: nothing that fails from here on is the guest's concern. The lock goes with this process at the latest.
    if let Err(error) = block.release_lock() {
        tracing::warn!("{error}");
    }
    watch.lap(Phase::Handover.name());
    Ok(Report {
        mode: Mode::CprReboot,
        downtime_us: None,
        total_us: watch.total(),
        phases: watch.laps().to_vec(),
        state_bytes: state.len() as u64,
        descriptors: 0,
        vcpus: machine.vcpu_count(),
        ram_kept: machine.ram_size(),
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
