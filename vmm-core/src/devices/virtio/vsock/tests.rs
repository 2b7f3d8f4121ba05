//! The device with queues in its hands: with vhost-vsock where the host has it, and what can be seen without.

use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::events::{EVENTS, transport_reset};
use super::turn::{Before, Turn};
use super::*;
use crate::config::Uuid;
use crate::cpr::Mode;
use crate::cpr::fds::{FdName, FdTable};
use crate::cpr::format::{HeaderInfo, StateReader, StateWriter};
use crate::devices::IrqLine;
use crate::devices::pci::fake::{Line, Vectors};
use crate::devices::pci::{Intx, IntxLine, Msix};
use crate::devices::virtio::{ActiveQueue, Interrupt, Run, VirtioDevice};

/// Where the rings of a queue are, and the driver's buffers.
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const BUFFER: u64 = 0x8000;
const VERSION_1: u64 = 1 << 32;

fn memory() -> Arc<GuestMemoryMmap> {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap())
}

/// A driver's three queues; that of events with so many buffers of so many bytes.
fn queues(memory: &GuestMemoryMmap, buffers: u16, length: u32) -> (Vec<ActiveQueue>, Arc<Interrupt>) {
    let lines = std::array::from_fn(|_| IntxLine::new(Arc::<Line>::default() as Arc<dyn IrqLine>));
    let msix = Arc::new(Msix::new(4, &Vectors::default()).unwrap());
    let interrupt = Interrupt::new(3, msix, Intx::new(&lines, 1));
    let queue = |index: u16| {
        let at = 0x1_0000 * (u64::from(index) + 1);
        let mut ring = Queue::new(128).unwrap();
        ring.set_desc_table_address(Some(at as u32), None);
        ring.set_avail_ring_address(Some((at + AVAILABLE) as u32), None);
        ring.set_used_ring_address(Some((at + USED) as u32), None);
        ring.set_ready(true);
        ActiveQueue::new(index, ring, Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()), Arc::clone(&interrupt))
    };
    let events = 0x3_0000;
    for number in 0..buffers {
        let descriptor = GuestAddress(events + 16 * u64::from(number));
        memory.write_obj(events + BUFFER + 16 * u64::from(number), descriptor).unwrap();
        memory.write_obj(u64::from(length) | 2 << 32, GuestAddress(descriptor.0 + 8)).unwrap();
        memory.write_obj(number, GuestAddress(events + AVAILABLE + 4 + 2 * u64::from(number))).unwrap();
        // What is there before is not what an event is.
        memory.write_obj(u64::MAX, GuestAddress(events + BUFFER + 16 * u64::from(number))).unwrap();
    }
    memory.write_obj(buffers, GuestAddress(events + AVAILABLE + 2)).unwrap();
    ((0..3).map(queue).collect(), interrupt)
}

/// How many events the guest was told, and the bytes where the first is.
fn told(memory: &GuestMemoryMmap) -> (u16, u64) {
    let read = |at| memory.read_obj::<u16>(GuestAddress(at)).unwrap();
    (read(0x3_0000 + USED + 2), memory.read_obj(GuestAddress(0x3_0000 + BUFFER)).unwrap())
}

#[test]
fn the_guest_is_told_of_a_transport_reset_in_its_own_buffer_once_it_has_given_one() {
    let memory = memory();
    let (mut list, interrupt) = queues(&memory, 0, 8);
    assert_eq!(transport_reset(&mut list[usize::from(EVENTS)], &memory).unwrap(), None);
    let (mut list, _) = queues(&memory, 2, 8);
    assert_eq!(transport_reset(&mut list[usize::from(EVENTS)], &memory).unwrap(), Some(2));
    assert_eq!(told(&memory), (1, 0xffff_ffff_0000_0000));
    assert_eq!(interrupt.isr(), 0);
    let (mut list, _) = queues(&memory, 1, 3);
    assert!(transport_reset(&mut list[usize::from(EVENTS)], &memory).is_err());
}

#[test]
fn addresses_that_no_guest_can_have_are_refused() {
    let valid = |guest_cid| VsockConfig { guest_cid, ..VsockConfig::default() }.validate().is_ok();
    assert_eq!([0, 1, 2, 3, u32::MAX - 1, u32::MAX].map(valid), [false, false, false, true, true, false]);
}

#[test]
fn the_end_of_a_turn_is_heard_by_who_comes_next_and_nothing_else_is_taken_for_one() {
    let (name, mut fds) = (FdName::new("vsock0.turn", 0), FdTable::new());
    let mut turn = Turn::begin().unwrap();
    turn.register(name.clone(), &mut fds).unwrap();
    let before = Before::adopt(&name, fds.take(&name).unwrap()).unwrap();
    let waited = |most| {
        let since = Instant::now();
        before.wait(most);
        since.elapsed()
    };
    assert!(waited(Duration::from_millis(50)) >= Duration::from_millis(50));
    turn.end();
    assert!(waited(Duration::from_mins(1)) < Duration::from_secs(30));
    let null = std::fs::File::open("/dev/null").unwrap().into();
    assert!(Before::adopt(&name, null).err().unwrap().to_string().contains("expected a pipe"));
}

/// A device with this address.
fn open(guest_cid: u32) -> Vsock {
    Vsock::open("vsock0", &VsockConfig { guest_cid, ..VsockConfig::default() }).unwrap()
}

fn no_state() -> StateReader {
    let header = HeaderInfo {
        mode: Mode::CprTransfer,
        guest_name: "test".into(),
        guest_uuid: Uuid([0; 16]),
        writer: "test".into(),
        created: 0,
    };
    StateReader::parse(&StateWriter::new(header).finish().unwrap()).unwrap()
}

#[test]
#[ignore = "needs /dev/vhost-vsock: scripts/lab vsock-lab-2 runs it"]
fn an_address_that_another_guest_has_is_refused_and_named() {
    let _first = open(0xc1d);
    let error = Vsock::open("vsock1", &VsockConfig { guest_cid: 0xc1d, ..VsockConfig::default() });
    let error = error.err().unwrap().to_string();
    assert!(error.contains("vsock1: taking guest-cid 3101: another guest on this host has it"), "{error}");
}

#[test]
#[ignore = "needs /dev/vhost-vsock: scripts/lab vsock-lab-2 runs it"]
fn all_queues_come_back_whether_the_kernel_had_them_or_not() {
    let vsock = open(0xc2d);
    let memory = memory();
    for count in [3, 1] {
        let (mut queues, _) = queues(&memory, 0, 8);
        queues.truncate(count);
        vsock.start(Run { memory: Arc::clone(&memory), features: VERSION_1, queues }).unwrap();
        assert_eq!(vsock.stop(Instant::now()).unwrap().len(), count);
    }
    assert!(vsock.stop(Instant::now()).unwrap().is_empty());
}

#[test]
#[ignore = "needs /dev/vhost-vsock: scripts/lab vsock-lab-2 runs it"]
fn who_comes_next_takes_the_address_when_it_is_let_go_and_tells_the_guest() {
    let source = open(0xc3d);
    let mut fds = FdTable::new();
    source.descriptors(Mode::CprTransfer, &mut fds).unwrap();
    let config = VsockConfig { guest_cid: 0xc3d, ..VsockConfig::default() };
    let target = Vsock::adopt("vsock0", &config, &mut fds).unwrap();
    fds.finish().unwrap();
    let memory = memory();
    target.load(1, &mut no_state()).unwrap();
    target.resume();
    let start = |vsock: &Vsock| {
        let (queues, interrupt) = queues(&memory, 1, 8);
        vsock.start(Run { memory: Arc::clone(&memory), features: VERSION_1, queues }).unwrap();
        interrupt
    };
    let interrupt = start(&target);
    assert_eq!(told(&memory).0, 1);
    // The source has it still: it could go on as if nothing had happened.
    start(&source);
    assert_eq!(source.stop(Instant::now()).unwrap().len(), 3);
    source.hand_over();
    // The guest's driver gives the buffer back: it has heard.
    memory.write_obj(2_u16, GuestAddress(0x3_0000 + AVAILABLE + 2)).unwrap();
    let taken =
        || Vsock::open("vsock1", &config).err().is_some_and(|e| e.to_string().contains("another guest"));
    let deadline = Instant::now() + Duration::from_secs(30);
    while !target.is_served() {
        assert!(Instant::now() < deadline, "the address was not taken");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(taken() && !interrupt.is_reset_needed());
    assert_eq!(target.stop(Instant::now()).unwrap().len(), 3);
}
