//! What a driver that breaks the rules does.

use super::machine::{AVAILABLE, BUFFERS, DESCRIPTORS, Machine, STRIDE, SUBJECT, USED, WITNESS};
use super::ram::{PIECE, PIECES, Ram};
use super::source::Source;
use super::subject::{Kind, Subject};
use crate::x86::layout::{PCI_ADDRESS_PORT, PCI_ECAM_START};

/// The most actions of a run.
const MOST: usize = 300;
/// The queues that it knows of.
const QUEUES: u8 = 7;

/// Addresses that are at the edge of something.
const EDGES: [u64; 14] = [
    0,
    DESCRIPTORS,
    AVAILABLE,
    USED,
    BUFFERS,
    PIECES[0] + PIECE,
    PIECES[1],
    PIECES[1] + BUFFERS,
    PIECES[1] + PIECE,
    PCI_ECAM_START,
    0xc000_0000,
    1 << 32,
    1 << 63,
    u64::MAX - 15,
];
const LENGTHS: [u32; 14] =
    [0, 1, 2, 8, 15, 16, 17, 512, 513, 0x1000, 0x1_0000, PIECE as u32, 0xffff_fff0, u32::MAX];
const WIDTHS: [usize; 8] = [1, 2, 4, 8, 1, 2, 4, 3];

/// Lets a driver do to a device what the bytes say, and sees that everything lives.
pub fn drive(kind: Kind, bytes: &[u8]) {
    let mut source = Source(bytes);
    run(kind, &mut source).judge();
}

/// A machine whose devices' BARs decode.
pub(super) fn machine(kind: Kind) -> Machine {
    let machine = Machine::new(Subject::new(kind), Ram::new());
    for slot in [SUBJECT, WITNESS] {
        machine.set_config(slot, 4, &[6]);
    }
    machine
}

/// The machine after the actions that the bytes say.
pub(super) fn run(kind: Kind, source: &mut Source) -> Machine {
    let mut machine = machine(kind);
    for _ in 0..MOST {
        if source.is_empty() {
            break;
        }
        let action = source.below(20);
        machine = step(machine, action, source);
    }
    machine.turn();
    machine
}

/// Lets a driver write what the bytes say to configuration space, by memory and by ports, and where a BAR is then.
pub fn drive_pci(bytes: &[u8]) {
    only(bytes, &[0, 0, 1, 2, 2, 5, 17]);
}

/// Lets a driver write what the bytes say to the registers of the transport.
pub fn drive_transport(bytes: &[u8]) {
    only(bytes, &[3, 3, 3, 5, 6, 13, 14, 15, 16, 17]);
}

fn only(bytes: &[u8], actions: &[u8]) {
    let mut source = Source(bytes);
    let mut machine = machine(Kind::Rng);
    for _ in 0..MOST {
        if source.is_empty() {
            break;
        }
        let action = source.one_of(actions);
        machine = step(machine, action, &mut source);
    }
    machine.judge();
}

fn step(machine: Machine, action: u8, source: &mut Source) -> Machine {
    match action {
        0 => {
            let (register, width, value) = (register(source), source.one_of(&WIDTHS), source.u64());
            machine.set_config(SUBJECT, register, &value.to_le_bytes()[..width]);
        }
        1 => {
            let (register, width) = (register(source), source.one_of(&WIDTHS));
            let at = PCI_ECAM_START + (u64::from(SUBJECT) << 15) + register;
            machine.bus.read_memory(at, &mut [0; 8][..width]);
        }
        2 => ports(&machine, source),
        3 | 4 => {
            let (offset, width, value) = (offset(source), source.one_of(&WIDTHS), source.u64());
            write(&machine, offset, &value.to_le_bytes()[..width]);
        }
        5 => {
            let (offset, width) = (offset(source), source.one_of(&WIDTHS));
            machine.bus.read_memory(machine.bar(SUBJECT).wrapping_add(offset), &mut [0; 8][..width]);
        }
        6 => window(&machine, source),
        7 => machine.put(address(source), source.u64()),
        8 | 9 => {
            let (base, at) = (base(source), u16::from(source.below(8)));
            let (address, length) = (address(source), length(source));
            // Next, write, indirect, and one bit that there is not.
            let flags = u16::from(source.below(16));
            machine.descriptor(base, at, address, length, flags, u16::from(source.below(10)));
        }
        10 => {
            let (base, entry) = (base(source), u64::from(source.below(9)));
            machine.put(base + AVAILABLE + 4 + 2 * entry, u16::from(source.below(10)));
        }
        11 => {
            let far = if source.bool() { source.u16() } else { source.below(10).into() };
            machine.put(base(source) + AVAILABLE + 2, far);
        }
        12 => machine.put(base(source) + source.one_of(&[AVAILABLE, USED]), source.u16()),
        13 => notify(&machine, source.below(QUEUES)),
        14 => start(&machine, source),
        15 => write(&machine, 20, &[source.u8()]),
        16 => machine.turn(),
        17 => return hand_over(machine),
        18 => machine.subject.stir(&source.u64().to_le_bytes()),
        _ => request(&machine, source),
    }
    machine
}

/// A register of configuration space, most often of the 256 bytes that there are.
fn register(source: &mut Source) -> u64 {
    let near = source.u8();
    if near < 0xf0 { near.into() } else { u64::from(source.u16()) & 0xfff }
}

/// An offset in the BAR, most often of a register.
fn offset(source: &mut Source) -> u64 {
    let (page, at) = (u64::from(source.below(8)) << 12, source.u8());
    page + if at < 0xf0 { at.into() } else { u64::from(source.u16()) & 0xfff }
}

fn address(source: &mut Source) -> u64 {
    let near = match source.u8() {
        0..100 => base(source) + BUFFERS,
        100..240 => source.one_of(&EDGES),
        _ => return source.u64(),
    };
    near.wrapping_add_signed((source.u8() as i8).into())
}

fn length(source: &mut Source) -> u32 {
    source.one_of(&LENGTHS).wrapping_add_signed(if source.bool() { 0 } else { (source.u8() as i8).into() })
}

/// Where a queue is that `start` sets up.
fn base(source: &mut Source) -> u64 {
    u64::from(source.below(QUEUES)) * STRIDE
}

fn write(machine: &Machine, offset: u64, data: &[u8]) {
    machine.bus.write_memory(machine.bar(SUBJECT).wrapping_add(offset), data);
}

pub(super) fn notify(machine: &Machine, queue: u8) {
    write(machine, 0x3000 + 4 * u64::from(queue), &[queue, 0]);
}

/// The two ports of configuration space; the other device is left alone.
fn ports(machine: &Machine, source: &mut Source) {
    let (port, width, mut value) = (source.below(8), source.one_of(&[1, 2, 4]), source.u64() as u32);
    if value >> 11 & 31 == u32::from(WITNESS) {
        value ^= u32::from(WITNESS ^ SUBJECT) << 11;
    }
    let port = PCI_ADDRESS_PORT + u16::from(port);
    machine.bus.write_ports(port, &value.to_le_bytes()[..width]);
    machine.bus.read_ports(port, &mut [0; 4][..width]);
}

/// The BAR by way of configuration space.
fn window(machine: &Machine, source: &mut Source) {
    // Where this transport has the capability.
    let mut at = u64::from(machine.config(SUBJECT, 0x34) & 0xff);
    while at != 0 && machine.config(SUBJECT, at) & 0xff00_00ff != 0x0500_0009 {
        at = u64::from(machine.config(SUBJECT, at) >> 8 & 0xff);
    }
    let (offset, length) = (offset(source) as u32, source.one_of(&[1_u32, 2, 4, 3, 0, u32::MAX]));
    machine.set_config(SUBJECT, at + 4, &[source.below(8) / 6]);
    machine.set_config(SUBJECT, at + 8, &offset.to_le_bytes());
    machine.set_config(SUBJECT, at + 12, &length.to_le_bytes());
    let (width, value) = (source.one_of(&WIDTHS), source.u64());
    machine.set_config(SUBJECT, at + 16, &value.to_le_bytes()[..width]);
    machine.config(SUBJECT, at + 16);
}

/// A reset and a start, as it should be but for what the bytes say.
pub(super) fn start(machine: &Machine, source: &mut Source) {
    let odd = source.u8();
    write(machine, 20, &[0]);
    write(machine, 20, &[3]);
    let mut offered = [0; 8];
    for half in 0..2_u32 {
        write(machine, 0, &half.to_le_bytes());
        write(machine, 8, &half.to_le_bytes());
        let part = &mut offered[4 * half as usize..][..4];
        machine.bus.read_memory(machine.bar(SUBJECT).wrapping_add(4), part);
        // All that is offered, or less.
        let mask = if odd & 1 == 0 { u32::MAX } else { source.u64() as u32 | half };
        let part = u32::from_le_bytes([part[0], part[1], part[2], part[3]]) & mask;
        write(machine, 12, &part.to_le_bytes());
    }
    write(machine, 20, &[11]);
    let size = if odd & 2 == 0 { 8 } else { source.u16() };
    for queue in 0..QUEUES {
        let base = u64::from(queue) * STRIDE;
        write(machine, 22, &[queue, 0]);
        write(machine, 24, &size.to_le_bytes());
        for (register, place) in [(32, DESCRIPTORS), (40, AVAILABLE), (48, USED)] {
            let place = if odd & 4 != 0 && source.bool() { address(source) } else { base + place };
            write(machine, register, &place.to_le_bytes());
        }
        machine.put(base + AVAILABLE, 0_u32);
        machine.put(base + USED, 0_u32);
        write(machine, 28, &[1, 0]);
    }
    write(machine, 20, &[15]);
}

/// A request that keeps the rules but for one descriptor.
fn request(machine: &Machine, source: &mut Source) {
    let mut all = machine.subject.requests();
    let which = if all.len() > 1 { source.below(all.len() as u8) } else { 0 };
    let mut good = all.swap_remove(which.into());
    let queue = if source.bool() { good.queue as u8 } else { source.below(QUEUES) };
    if source.bool() {
        good.reads.iter_mut().for_each(|byte| *byte = source.u8());
    }
    if source.bool() {
        good.writes = length(source);
    }
    let base = u64::from(queue) * STRIDE;
    machine.offer(base, &good);
    if source.bool() {
        let (at, address, length) = (u16::from(source.below(3)), address(source), length(source));
        machine.descriptor(base, at, address, length, source.below(8).into(), source.below(4).into());
    }
    notify(machine, queue);
}

/// The guest goes on in the next process.
fn hand_over(machine: Machine) -> Machine {
    machine.stop();
    let state = machine.save();
    let next = machine.successor();
    next.load(&state).unwrap_or_else(|error| panic!("what was saved is refused: {error}"));
    assert!(next.save() == state, "state that was loaded is saved as something else");
    next.resume();
    next
}
