//! What can be seen of vhost devices: without one, and with one where the host has it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::device::address;
use super::ioctls::{MAX_REGIONS, Region, Regions};
use super::*;
use crate::cpr::fds::{FdName, FdTable};
use crate::devices::IrqLine;
use crate::devices::pci::fake::{Line, Vectors};
use crate::devices::pci::{Intx, IntxLine, Msix};
use crate::devices::virtio::{ActiveQueue, Interrupt, Run, skip};

const RAM: usize = 1 << 20;

fn memory() -> Arc<GuestMemoryMmap> {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM), (GuestAddress(4 << 30), RAM)]).unwrap())
}

fn interrupt() -> (Arc<Interrupt>, Arc<Line>) {
    let line = Arc::<Line>::default();
    let lines = std::array::from_fn(|_| IntxLine::new(Arc::clone(&line) as Arc<dyn IrqLine>));
    let msix = Arc::new(Msix::new(RINGS as u16 + 1, &Vectors::default()).unwrap());
    (Interrupt::new(RINGS, msix, Intx::new(&lines, 1)), line)
}

fn queue(index: u16, at: u64, next: u16, interrupt: &Arc<Interrupt>) -> ActiveQueue {
    let mut ring = Queue::new(64).unwrap();
    ring.set_desc_table_address(Some(at as u32), Some((at >> 32) as u32));
    ring.set_avail_ring_address(Some(at as u32 + 0x1000), Some((at >> 32) as u32));
    ring.set_used_ring_address(Some(at as u32 + 0x2000), Some((at >> 32) as u32));
    ring.set_next_avail(next);
    ring.set_ready(true);
    ActiveQueue::new(index, ring, Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()), Arc::clone(interrupt))
}

#[test]
fn rings_are_told_where_they_are_in_this_process() {
    let (memory, (interrupt, _)) = (memory(), interrupt());
    let host = |guest: u64| memory.get_host_address(GuestAddress(guest)).unwrap() as u64;
    let high = (4_u64 << 30) + 0x4000;
    let found = address(1, &queue(1, high, 0, &interrupt), &memory).unwrap();
    assert_eq!(
        (found.ring, found.descriptors, found.available, found.used),
        (1, host(high), host(high + 0x1000), host(high + 0x2000))
    );
    assert!(address(0, &queue(0, RAM as u64 - 0x2000, 0, &interrupt), &memory).is_err());
}

#[test]
fn more_regions_than_the_kernel_takes_are_refused() {
    assert!(Regions::new(&[Region::default(); MAX_REGIONS]).is_some());
    assert!(Regions::new(&[Region::default(); MAX_REGIONS + 1]).is_none());
}

#[test]
fn a_descriptor_of_another_kind_is_refused_and_named() {
    let null = || std::fs::File::open("/dev/null").unwrap().into();
    let name = FdName::new("net0.vhost", 0);
    for node in [Node::Net, Node::Vsock] {
        let error = Vhost::adopt("net0", node, &name, null()).err().unwrap().to_string();
        assert!(error.contains("'net0.vhost' #0") && error.contains(node.path()), "{error}");
        assert!(error.contains("1:3"), "{error}");
    }
}

#[test]
fn a_call_of_the_kernel_becomes_an_interrupt_and_a_broken_ring_needs_a_reset() {
    let (interrupt, line) = interrupt();
    let calls = super::calls::Calls::start("net0").unwrap();
    nix::unistd::write(calls.call(1), &1_u64.to_ne_bytes()).unwrap();
    // Nobody was there to tell; who comes later is told nothing old.
    calls.disconnect();
    calls.connect(&interrupt, [0, 1]);
    assert!(!line.0.load(Ordering::SeqCst));
    nix::unistd::write(calls.call(1), &1_u64.to_ne_bytes()).unwrap();
    calls.disconnect();
    assert!(line.0.load(Ordering::SeqCst));
    calls.connect(&interrupt, [0, 1]);
    nix::unistd::write(calls.broken(), &1_u64.to_ne_bytes()).unwrap();
    calls.disconnect();
    assert!(interrupt.is_reset_needed());
}

/// The device, where the host has it.
fn open(node: Node) -> Option<Vhost> {
    if std::fs::File::options().read(true).write(true).open(node.path()).is_err() {
        let error = Vhost::open("dev0", node).err()?.to_string();
        assert!(error.contains(node.path()), "{error}");
        skip(error);
        return None;
    }
    Some(Vhost::open("dev0", node).unwrap())
}

#[test]
fn vhost_net_is_handed_to_another_owner_and_comes_back() {
    let Some(first) = open(Node::Net) else { return };
    let (name, mut fds) = (FdName::new("net0.vhost", 0), FdTable::new());
    first.register(name.clone(), &mut fds).unwrap();
    let second = Vhost::adopt("net0", Node::Net, &name, fds.take(&name).unwrap()).unwrap();
    let error = second.own().unwrap_err().to_string();
    assert!(error.contains("has not let go"), "{error}");
    first.release().unwrap();
    second.own().unwrap();
    drop(second);
    first.own().unwrap();
}

#[test]
fn vhost_vsock_gives_its_queues_back_as_they_were_and_an_address_is_one_guests() {
    let (Some(first), Some(second)) = (open(Node::Vsock), open(Node::Vsock)) else { return };
    first.set_guest_cid(0xc0de).unwrap();
    assert_eq!(second.set_guest_cid(0xc0de), Err(nix::Error::EADDRINUSE));
    let (memory, (interrupt, _)) = (memory(), interrupt());
    let queues = vec![queue(0, 0x4000, 0, &interrupt), queue(1, 0x8000, 0, &interrupt)];
    let run = Run { memory, features: 1 << 32, queues };
    first.start(run, Backend::Sockets).unwrap();
    let back = first.stop().unwrap();
    assert_eq!(
        back.iter().map(|queue| (queue.index, queue.ring.next_avail())).collect::<Vec<_>>(),
        [(0, 0), (1, 0)]
    );
    assert!(first.stop().unwrap().is_empty());
}
