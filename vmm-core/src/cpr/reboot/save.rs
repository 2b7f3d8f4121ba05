//! The old process's side: the guest's state to a file, its RAM left in place, or copied into the file.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use super::copy::{self, CopyError, Written};
use super::file::{Published, StateFile};
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

/// Room that is reserved before the guest stops: for the machine, and for each vCPU. More than state has ever taken.
const ROOM: u64 = 1 << 20;
const ROOM_PER_VCPU: u64 = 64 << 10;

/// Saves a guest to a file. An error leaves the guest running.
pub fn save(
    machine: &Machine,
    path: &Path,
    fate: RamFate,
    limits: Limits,
    cancel: &OwnedFd,
    observer: &dyn Observer,
    mut watch: Stopwatch,
) -> Result<Report, HandoverError> {
    observer.phase(Phase::Prepare);
    let mut file = StateFile::create(path).in_phase(Phase::Prepare)?;
    let block = machine.ram_block();
    let block = block.ok_or_else(|| HandoverError::new(Phase::Prepare, "the guest has no RAM"))?;
    let mut room = ROOM + ROOM_PER_VCPU * u64::from(machine.vcpu_count());
    let location = match fate {
        RamFate::Stays => block.stamp_location().ok_or_else(|| {
            HandoverError::new(Phase::Prepare, "the guest's RAM would not outlive this process")
        })?,
        RamFate::Copied => {
            room += copy::most(block).in_phase(Phase::Prepare)?;
            copy::blank_stamp().in_phase(Phase::Prepare)?
        }
    };
    file.reserve(room).in_phase(Phase::Prepare)?;
    let mut writer = StateWriter::new(machine.header(Mode::CprReboot));
    machine.describe(Mode::CprReboot, &mut writer).in_phase(Phase::Prepare)?;
    watch.lap(Phase::Prepare.name());
    let cancelled = || was_cancelled(cancel.as_fd());
    if cancelled() {
        return Err(HandoverError::cancelled(Phase::Prepare));
    }

    let mut stopped = machine.quiesce(Instant::now() + limits.downtime, &mut watch).in_phase(Phase::Stop)?;
    stopped.save(&mut writer, &mut watch).in_phase(Phase::Save)?;
    let (mut at, mut ram_copied) = (0, 0);
    if fate == RamFate::Copied {
        let written = copy_ram(block, &file, room, &cancelled)?;
        writer.put(0, &written.state).in_phase(Phase::Save)?;
        (at, ram_copied) = (written.end, written.ram);
        watch.lap("copy RAM");
    }
    let (stamp, section) = stamp_ram(machine, block, &location, &stopped)?;
    writer.put(0, &section).in_phase(Phase::Save)?;
    let mut state = writer.finish().in_phase(Phase::Save)?;
    let state_bytes = state.len() as u64;
    if fate == RamFate::Copied {
        state.extend_from_slice(copy::trailer(state_bytes).as_ref());
    }
    watch.lap("encode");
    if cancelled() {
        return Err(HandoverError::cancelled(Phase::Save));
    }
    stopped.offer(stamp.ownership()).in_phase(Phase::Handover)?;
    let published = match fate {
        RamFate::Stays => file.publish(at, &state).and_then(Published::keep),
        // Its word is in the file from here on, and nobody can reach it before the file has its name. Then the guest is given
        // away, whatever comes.
        RamFate::Copied => {
            file.write_first(&location).and_then(|()| file.publish(at, &state)).map(Published::leave)
        }
    };
    if published.is_err() || (fate == RamFate::Stays && cancelled()) {
        // Taken back, the offer makes the file worthless, should it be there: nobody can load it any more.
        stopped.take_back(stamp.ownership()).in_phase(Phase::Handover)?;
        if let Err(error) = stamp.persist() {
            tracing::error!(
                "that the guest was taken back may not be on disk: {error}; remove the state file"
            );
        }
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
        state_bytes,
        descriptors: 0,
        vcpus: machine.vcpu_count(),
        ram_kept: if fate == RamFate::Stays { machine.ram_size() } else { 0 },
        ram_copied,
    })
}

fn copy_ram(
    block: &RamBlock,
    file: &StateFile,
    room: u64,
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<Written, HandoverError> {
    copy::write(block, file.file(), cancelled).map_err(|error| match error {
        CopyError::Cancelled => HandoverError::cancelled(Phase::Save),
        // A full disk is named as such.
        CopyError::Io { doing, source } => {
            HandoverError::new(Phase::Save, file.write_failed(&doing, room, source))
        }
        error => HandoverError::new(Phase::Save, error),
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
