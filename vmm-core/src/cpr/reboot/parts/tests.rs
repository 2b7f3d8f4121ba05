//! Guests that come and go in one device, for which a file stands in; the rules are the same.

use std::os::unix::fs::FileExt;
use std::path::Path;

use super::*;
use crate::cpr::ownership::Claim;
use crate::cpr::reboot::stamp::RamStamp;
use crate::memory::MemoryError;

const UNIT: u64 = 2 << 20;
const A: Uuid = Uuid([0xa; 16]);
const B: Uuid = Uuid([0xb; 16]);

/// A device of 16 units, as a cold boot leaves it.
fn device() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    file.as_file().write_all_at(&vec![0xa5; 16 * UNIT as usize], 0).unwrap();
    file
}

/// RAM of so many units, locked.
fn open(device: &Path, units: u64, at: Option<u64>) -> Result<RamBlock, MemoryError> {
    RamBlock::in_stand_in(device, units * UNIT, at.map(|at| at * UNIT))
}

fn boot_with(
    device: &tempfile::NamedTempFile,
    (units, at): (u64, Option<u64>),
    waiting: Waiting,
) -> Result<RamBlock, StampError> {
    let ram = open(device.path(), units, at).unwrap();
    make_room(&ram, waiting)?;
    ram.clear_stamp().unwrap();
    Ok(ram)
}

fn boot(device: &tempfile::NamedTempFile, place: (u64, Option<u64>)) -> Result<RamBlock, StampError> {
    boot_with(device, place, Waiting::Kept)
}

/// Gives a guest up to whoever loads it.
fn save(ram: RamBlock, guest: Uuid) -> RamStamp {
    enter(&ram, guest).unwrap();
    let StampLocation { file, offset, granularity } = ram.stamp_location().unwrap();
    let claim = Claim::cold_boot();
    let stamp = Stamp::create(&file, offset, granularity, guest, ram.size(), &claim).unwrap();
    let state = stamp.renew(guest, ram.size(), &claim);
    stamp.ownership().offer(claim).unwrap();
    drop(ram);
    state
}

/// Whether a guest could be loaded.
fn load(
    device: &tempfile::NamedTempFile,
    (units, at): (u64, Option<u64>),
    state: &RamStamp,
) -> Result<(), StampError> {
    let ram = open(device.path(), units, at).unwrap();
    stamp_of(&ram, Uuid(state.uuid))?.unwrap().check(state)
}

fn said<T: std::fmt::Debug>(refused: Result<T, impl std::fmt::Display>) -> String {
    refused.unwrap_err().to_string()
}

#[test]
fn guests_side_by_side_are_saved_and_each_is_loaded_from_its_part_only() {
    let device = device();
    let (at_0, at_5) = ((4, Some(0)), (4, Some(5)));
    let (a, b) = (boot(&device, at_0).unwrap(), boot(&device, at_5).unwrap());
    assert_eq!((a.offset(), b.offset()), (0, 5 * UNIT));
    let (a, b) = (save(a, A), save(b, B));
    load(&device, at_0, &a).unwrap();
    load(&device, at_5, &b).unwrap();
    let message = said(load(&device, at_5, &a));
    assert!(message.contains("no part 10M to 20M of guest 0a0a0a0a-"), "{message}");
    assert!(matches!(load(&device, (3, Some(0)), &a), Err(StampError::Parts(PartsError::NotThere { .. }))));
}

#[test]
fn whether_a_guest_could_be_saved_is_told_without_a_trace() {
    let (device, place) = (device(), (4, Some(0)));
    let ram = boot(&device, place).unwrap();
    check(&ram, A).unwrap();
    check(&boot(&device, (4, Some(5))).unwrap(), B).unwrap();
    assert!(matches!(stamp_of(&ram, A), Err(StampError::Parts(PartsError::NotThere { .. }))));
}

#[test]
fn guests_that_run_exclude_each_other_whatever_they_have() {
    let device = device();
    let a = boot(&device, (4, Some(5))).unwrap();
    let message = said(open(device.path(), 4, Some(1)));
    assert!(
        message.contains(", 2M to 12M, is in use by another guest, which has 10M to 20M of it"),
        "{message}"
    );
    let message = said(open(device.path(), 4, None));
    assert!(message.ends_with("is in use by another guest, which has 10M to 20M of it"), "{message}");
    let b = boot(&device, (4, Some(0))).unwrap();
    drop((a, b));
    let _all = boot(&device, (4, None)).unwrap();
    let message = said(open(device.path(), 1, Some(5)));
    assert!(message.ends_with(", 10M to 14M, is in use by another guest, which has all of it"), "{message}");
}

#[test]
fn a_boot_over_a_waiting_guest_is_refused_with_its_name_and_what_is_free() {
    let device = device();
    let runs = boot(&device, (2, Some(10))).unwrap();
    boot(&device, (1, Some(7))).unwrap();
    let place = (4, Some(2));
    let state = save(boot(&device, place).unwrap(), A);
    for (units, at) in [(4, Some(0)), (1, Some(6)), (2, Some(3))] {
        let message = said(boot(&device, (units, at)));
        assert!(
            message.starts_with("guest 0a0a0a0a-") && message.contains(", 4M to 14M, for its state file"),
            "{message}"
        );
        assert!(message.contains("room in 0 to 4M, 14M to 20M, 26M to 30M)"), "{message}");
    }
    load(&device, place, &state).unwrap();
    drop(runs);
    let message = said(boot(&device, (15, None)));
    assert!(message.contains("guest 0a0a0a0a-"), "{message}");
    load(&device, place, &state).unwrap();
    // Beside it there is room.
    boot(&device, (5, Some(7))).unwrap();
    load(&device, place, &state).unwrap();
}

#[test]
fn who_was_given_up_is_never_loaded_whatever_lies_where_its_stamp_was() {
    for over in [(1, Some(0)), (15, None)] {
        let (device, place) = (device(), (4, Some(0)));
        let state = save(boot(&device, place).unwrap(), A);
        let mut stamp = vec![0; 4096];
        device.as_file().read_exact_at(&mut stamp, 4 * UNIT).unwrap();
        drop(boot_with(&device, over, Waiting::Discarded).unwrap());
        // That was in the sight of the one that came after it.
        device.as_file().write_all_at(&stamp, 4 * UNIT).unwrap();
        assert!(matches!(load(&device, place, &state), Err(StampError::Parts(PartsError::NotThere { .. }))));
    }
}

#[test]
fn a_stamp_that_a_guest_forged_in_its_ram_stops_nobody() {
    let device = device();
    for at in [Some(0), None] {
        let ram = boot(&device, (12, at)).unwrap();
        for unit in 0..12 {
            let location = StampLocation { offset: unit * UNIT, ..ram.stamp_location().unwrap() };
            let claim = Claim::cold_boot();
            let forged = Stamp::create(&location.file, location.offset, UNIT, A, UNIT, &claim).unwrap();
            forged.ownership().offer(claim).unwrap();
        }
        drop(ram);
        let b = boot(&device, (3, Some(4))).unwrap();
        drop(b);
        boot(&device, (3, Some(5))).unwrap();
    }
}

#[test]
fn all_of_a_device_and_parts_of_it_take_turns() {
    let (device, all, part) = (device(), (10, None), (4, Some(1)));
    let state = save(boot(&device, all).unwrap(), A);
    assert!(matches!(boot(&device, part), Err(StampError::Waiting)));
    load(&device, all, &state).unwrap();
    let in_part = save(boot_with(&device, part, Waiting::Discarded).unwrap(), B);
    assert!(matches!(load(&device, all, &state), Err(StampError::Parts(PartsError::Divided))));
    load(&device, part, &in_part).unwrap();
    let state = save(boot_with(&device, all, Waiting::Discarded).unwrap(), A);
    load(&device, all, &state).unwrap();
    assert!(matches!(load(&device, part, &in_part), Err(StampError::Parts(PartsError::NotThere { .. }))));
}

#[test]
fn builds_that_know_no_parts_are_kept_from_booting_over_them() {
    let device = device();
    boot(&device, (4, Some(1))).unwrap();
    let mut header = [0; 12];
    device.as_file().read_exact_at(&mut header, 15 * UNIT).unwrap();
    assert_eq!(header, *b"cprstamp\x02\0\0\0");
}

#[test]
fn a_damaged_table_is_refused_by_name_and_nobody_is_loaded_by_it() {
    let (device, place) = (device(), (4, Some(0)));
    let state = save(boot(&device, place).unwrap(), A);
    let mut table = vec![0; 4096];
    device.as_file().read_exact_at(&mut table, 15 * UNIT).unwrap();
    device.as_file().write_all_at(&[0xff; 4000], 15 * UNIT + 16).unwrap();
    let messages = [
        said(boot(&device, (4, Some(8)))),
        said(boot(&device, (4, None))),
        said(load(&device, place, &state)),
    ];
    for message in messages {
        assert!(
            message.contains("table of parts is damaged") && message.contains("--discard-saved"),
            "{message}"
        );
    }
    device.as_file().write_all_at(&table, 15 * UNIT).unwrap();
    load(&device, place, &state).unwrap();
    device.as_file().write_all_at(&[0xff; 4000], 15 * UNIT + 16).unwrap();
    boot_with(&device, (4, Some(8)), Waiting::Discarded).unwrap();
    assert!(matches!(load(&device, place, &state), Err(StampError::Parts(PartsError::NotThere { .. }))));
}

#[test]
fn a_guest_is_booted_again_in_its_part_and_in_another_size() {
    let device = device();
    let beside = save(boot(&device, (2, Some(12))).unwrap(), B);
    for units in [4, 4, 5, 3] {
        let state = save(boot_with(&device, (units, Some(2)), Waiting::Discarded).unwrap(), A);
        load(&device, (units, Some(2)), &state).unwrap();
    }
    load(&device, (2, Some(12)), &beside).unwrap();
}

#[test]
fn who_does_not_let_go_of_the_table_is_not_waited_for_forever() {
    let device = device();
    let ram = open(device.path(), 1, Some(0)).unwrap();
    let other = open(device.path(), 1, Some(4)).unwrap();
    let held = Device::of(&other).unwrap().lock().unwrap();
    let message = said(make_room(&ram, Waiting::Kept));
    assert!(message.contains("another process has its table"), "{message}");
    drop(held);
    make_room(&ram, Waiting::Kept).unwrap();
}

#[test]
fn as_many_guests_wait_in_a_device_as_its_table_has_room_for() {
    let device = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    device.as_file().set_len(150 * UNIT).unwrap();
    let place = |at: usize| (1, Some(2 * at as u64));
    let states: Vec<_> = (0..MOST).map(|at| save(boot(&device, place(at)).unwrap(), A)).collect();
    let one_more = boot(&device, place(MOST)).unwrap();
    for refused in [enter(&one_more, B), check(&one_more, B)] {
        assert!(said(refused).contains("63 parts in which guests run or wait"));
    }
    // One runs again, another is given up.
    let runs = open(device.path(), 1, Some(0)).unwrap();
    let loaded = stamp_of(&runs, A).unwrap().unwrap();
    let _claim = loaded.ownership().claim().unwrap();
    assert!(enter(&one_more, B).is_err());
    let given_up = open(device.path(), 1, Some(4)).unwrap();
    drop(stamp_of(&given_up, A).unwrap().unwrap().ownership().claim().unwrap());
    drop(given_up);
    let one_more = save(one_more, B);
    load(&device, place(MOST), &one_more).unwrap();
    load(&device, place(1), &states[1]).unwrap();
    assert!(matches!(
        load(&device, place(2), &states[2]),
        Err(StampError::Parts(PartsError::NotThere { .. }))
    ));
}

#[test]
fn a_guest_that_runs_while_the_table_is_made_anew_can_be_saved() {
    let (device, place) = (device(), (4, Some(0)));
    let runs = boot(&device, place).unwrap();
    device.as_file().write_all_at(&[0xff; 4000], 15 * UNIT + 16).unwrap();
    for refused in [enter(&runs, A), check(&runs, A)] {
        assert!(said(refused).contains("table of parts is damaged"));
    }
    boot_with(&device, (4, Some(8)), Waiting::Discarded).unwrap();
    load(&device, place, &save(runs, A)).unwrap();
}

#[test]
fn a_guest_that_is_booted_again_where_it_was_gives_up_nobody() {
    let (device, place) = (device(), (4, Some(0)));
    let runs = boot(&device, place).unwrap();
    let waits = save(boot(&device, (4, Some(8))).unwrap(), B);
    let mut table = vec![0; 4096];
    device.as_file().read_exact_at(&mut table, 15 * UNIT).unwrap();
    device.as_file().write_all_at(&[0xff; 4000], 15 * UNIT + 16).unwrap();
    drop(runs);
    let again = boot_with(&device, place, Waiting::Elsewhere).unwrap();
    device.as_file().write_all_at(&table, 15 * UNIT).unwrap();
    drop(again);
    let again = boot_with(&device, place, Waiting::Elsewhere).unwrap();
    load(&device, (4, Some(8)), &waits).unwrap();
    load(&device, place, &save(again, A)).unwrap();
    assert!(boot_with(&device, (5, Some(0)), Waiting::Elsewhere).is_err());
}
