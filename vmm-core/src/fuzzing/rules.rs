//! Rules that are broken one at a time.

use std::time::Duration;

use super::actions::{machine, notify, start};
use super::machine::{AVAILABLE, BUFFERS, DESCRIPTORS, Machine, STRIDE, SUBJECT, USED, wait};
use super::ram::{PIECE, PIECES};
use super::source::Source;
use super::subject::Kind;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Which devices need a reset after a request that makes no sense to them.
const RESETS: [(Kind, bool); 4] =
    [(Kind::Rng, false), (Kind::Console, false), (Kind::Block, true), (Kind::Net, false)];

/// Starts a device, has `spoil` put something in the queue at an address and makes it available, and sees that the device needs a
/// reset, or that it answers, and works after a reset in both cases.
fn broken(kind: Kind, needs_reset: bool, spoil: impl Fn(&Machine, u64)) {
    let queue = u8::from(matches!(kind, Kind::Console | Kind::Net));
    let base = STRIDE * u64::from(queue);
    let machine = machine(kind);
    start(&machine, &mut Source(&[]));
    machine.put(base + AVAILABLE + 4, 0_u16);
    spoil(&machine, base);
    // Last: the device may look at any time once it has been started.
    machine.put(base + AVAILABLE + 2, 1_u16);
    notify(&machine, queue);
    let status = || {
        let mut status = [0];
        machine.bus.read_memory(machine.bar(SUBJECT) + 20, &mut status);
        status[0]
    };
    if needs_reset {
        wait("DEVICE_NEEDS_RESET", || status() == 0x4f);
    } else {
        wait("the answer", || machine.get(base + USED + 2) == 1);
        assert_eq!(status(), 0x0f, "{kind:?}");
    }
    machine.judge();
}

#[test]
fn a_chain_that_loops_ends() {
    for (kind, needs_reset) in RESETS {
        broken(kind, needs_reset, |m, base| {
            m.descriptor(base, 0, BUFFERS, 16, NEXT, 1);
            m.descriptor(base, 1, BUFFERS, 16, NEXT | WRITE, 0);
        });
    }
}

#[test]
fn an_indirect_table_in_an_indirect_table_ends_the_chain() {
    for (kind, needs_reset) in RESETS {
        broken(kind, needs_reset, |m, base| {
            m.descriptor(base, 0, base + DESCRIPTORS, 64, INDIRECT, 0);
        });
    }
}

#[test]
fn a_buffer_that_is_not_in_ram_is_not_touched() {
    let end = PIECES[0] + PIECE;
    for address in [end, end - 8, PIECES[1] + PIECE, 0xc000_0000, 1 << 63, u64::MAX, u64::MAX - 7] {
        broken(Kind::Rng, true, |m, base| m.descriptor(base, 0, address, 16, WRITE, 0));
        broken(Kind::Block, true, |m, base| m.descriptor(base, 0, address, 16, 0, 0));
        broken(Kind::Net, true, |m, base| m.descriptor(base, 0, address, 16, 0, 0));
        broken(Kind::Block, true, |m, base| {
            m.descriptor(base, 0, BUFFERS, 16, NEXT, 1);
            m.descriptor(base, 1, address, 16, WRITE, 0);
        });
    }
}

#[test]
fn lengths_of_nothing_and_of_everything_end() {
    for (length, resets) in [(0, [false, true]), (u32::MAX, [false, true])] {
        broken(Kind::Rng, resets[0], |m, base| m.descriptor(base, 0, BUFFERS, length, WRITE, 0));
        broken(Kind::Block, resets[1], |m, base| m.descriptor(base, 0, BUFFERS, length, WRITE, 0));
    }
}

#[test]
fn used_elements_over_the_descriptors_harm_nobody_else() {
    for kind in [Kind::Rng, Kind::Console, Kind::Block, Kind::Net, Kind::VhostNet, Kind::Vsock] {
        let machine = machine(kind);
        start(&machine, &mut Source(&[]));
        let write = |offset, data: &[u8]| machine.bus.write_memory(machine.bar(SUBJECT) + offset, data);
        // The queue is reset and comes back with its used ring where its descriptors are.
        for queue in 0..2_u16 {
            write(22, &queue.to_le_bytes());
            write(58, &[1, 0]);
            for register in [32, 40, 48] {
                write(register, &DESCRIPTORS.to_le_bytes());
            }
            write(28, &[1, 0]);
        }
        machine.descriptor(0, 0, BUFFERS, 16, NEXT | WRITE, 1);
        machine.descriptor(0, 1, USED, 600, WRITE, 0);
        notify(&machine, 0);
        machine.turn();
        machine.judge();
    }
}

#[test]
fn more_than_any_buffer_holds_is_not_read_over_and_over() {
    let machine = machine(Kind::Console);
    start(&machine, &mut Source(&[]));
    // 4095 times the same half a mebibyte, as what the port sends and as what the driver says of it.
    let table = PIECES[1];
    for at in 0..4095_u64 {
        machine.put(table + 16 * at, 0_u64);
        machine.put(table + 16 * at + 8, PIECE as u32);
        machine.put(table + 16 * at + 12, NEXT);
        machine.put(table + 16 * at + 14, at as u16 + 1);
    }
    for queue in [1, 3, 5] {
        let base = u64::from(queue) * STRIDE;
        for at in 0..8 {
            machine.descriptor(base, at, table, 16 * 4095, INDIRECT, 0);
            machine.put(base + AVAILABLE + 4 + 2 * u64::from(at), at);
        }
        machine.put(base + AVAILABLE + 2, 8_u16);
        notify(&machine, queue);
    }
    let before = std::time::Instant::now();
    machine.turn();
    machine.stop();
    assert!(before.elapsed() < Duration::from_secs(2), "{:?}", before.elapsed());
    machine.resume();
    machine.judge();
}

#[test]
fn half_a_pair_of_queues_does_not_keep_the_kernel_at_work_on_the_whole_one_before_it() {
    let machine = machine(Kind::VhostNet);
    start(&machine, &mut Source(&[]));
    let write = |offset, data: &[u8]| machine.bus.write_memory(machine.bar(SUBJECT) + offset, data);
    let status = || {
        let mut status = [0];
        machine.bus.read_memory(machine.bar(SUBJECT) + 20, &mut status);
        status[0]
    };
    // Queue 3 is reset, and queue 2 has the second pair for itself.
    write(22, &[3, 0]);
    write(58, &[1, 0]);
    assert_eq!(status(), 0x4f);
    machine.judge();
}
