//! What can be seen of vhost devices: without one, and with one where the host has it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::device::address;
use super::ioctls::{MAX_REGIONS, VhostFd};
use super::*;
use crate::cpr::Mode;
use crate::devices::IrqLine;
use crate::devices::pci::fake::{Line, Vectors};
use crate::devices::pci::{ConfigSpace, Identity, Intx, IntxLine, Msix};
use crate::devices::virtio::{ActiveQueue, Interrupt, Run};
use crate::fuzzing::Double;

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
fn a_call_of_the_kernel_becomes_an_interrupt_and_a_broken_ring_needs_a_reset() {
    let (interrupt, line) = interrupt();
    let no_device = std::fs::File::open("/dev/null").unwrap().into();
    let kernel: Arc<dyn Kernel> = Arc::new(VhostFd(no_device));
    let calls = super::calls::Calls::start("net0", &kernel).unwrap();
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

#[test]
fn a_host_without_the_device_is_told_what_is_missing() {
    for node in [Node::Net, Node::Vsock] {
        if let Err(error) = Vhost::open("dev0", node) {
            let error = error.to_string();
            assert!(error.contains(node.path()) && error.contains("module"), "{error}");
        }
    }
}

#[test]
fn a_node_that_cannot_be_opened_stands_in_the_way_of_an_exec() {
    for node in [Node::Net, Node::Vsock] {
        let vhost = Vhost::with("dev0", node, Arc::<Double>::default()).unwrap();
        for mode in Mode::ALL {
            let expected = mode == Mode::CprExec && !std::fs::exists(node.path()).unwrap();
            let blockers = vhost.blockers(mode);
            assert_eq!(blockers.iter().any(|blocker| blocker.part == "dev0"), expected, "{blockers:?}");
            let named = blockers
                .iter()
                .all(|blocker| blocker.reason.starts_with(&format!("opening {}", node.path())));
            assert!(named, "{blockers:?}");
        }
    }
}

#[test]
#[ignore = "needs /dev/vhost-vsock: scripts/lab vsock-lab-2 runs it"]
fn vhost_vsock_gives_its_queues_back_as_they_were_and_an_address_is_one_guests() {
    let open = || Vhost::open("dev0", Node::Vsock).unwrap();
    let (first, second) = (open(), open());
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

/// A driver's MSI-X: on, or off and INTx in its place.
struct Vectored {
    vectors: Vectors,
    config: ConfigSpace,
    capability: usize,
    msix: Arc<Msix>,
    interrupt: Arc<Interrupt>,
    line: Arc<Line>,
}

impl Vectored {
    fn new() -> Self {
        let (vectors, line) = (Vectors::default(), Arc::<Line>::default());
        let lines = std::array::from_fn(|_| IntxLine::new(Arc::clone(&line) as Arc<dyn IrqLine>));
        let msix = Arc::new(Msix::new(RINGS as u16 + 1, &vectors).unwrap());
        let mut config = ConfigSpace::new(Identity::default(), &[]);
        let capability = msix.add_capability(&mut config, 0, 0x4000, 0x5000);
        (0..3).for_each(|vector| msix.write_table(vector * 16 + 12, &[0; 4]));
        let interrupt = Interrupt::new(RINGS, Arc::clone(&msix), Intx::new(&lines, 1));
        Self { vectors, config, capability, msix, interrupt, line }
    }

    fn enable(&mut self, on: bool) {
        self.config.write(self.capability + 2, &(u16::from(on) << 15).to_le_bytes());
        self.msix.follow(&self.config, self.capability);
        self.interrupt.follow(false);
    }

    /// How often each vector was sent, and whether INTx is high.
    fn seen(&self) -> ([usize; 3], bool) {
        let vectors = self.vectors.0.lock().unwrap();
        (std::array::from_fn(|vector| vectors[vector].sent().len()), self.line.0.load(Ordering::SeqCst))
    }
}

#[test]
#[ignore = "needs /dev/vhost-vsock: scripts/lab vsock-lab-2 runs it"]
fn calls_follow_the_driver_from_vector_to_vector_and_to_intx() {
    let vhost = Vhost::open("dev0", Node::Vsock).unwrap();
    vhost.set_guest_cid(0xca11).unwrap();
    let (memory, mut driver) = (memory(), Vectored::new());
    driver.enable(true);
    driver.interrupt.set_vector(Some(1), 1);
    let queues = vec![queue(0, 0x4000, 0, &driver.interrupt), queue(1, 0x8000, 0, &driver.interrupt)];
    let kick = Arc::clone(&queues[1].kick);
    vhost.start(Run { memory: Arc::clone(&memory), features: 1 << 32, queues }, Backend::Sockets).unwrap();
    let mut sent = 0;
    // Packets to nobody: the kernel takes each, and calls.
    let mut send = || {
        memory.write_obj(0xf000_u64, GuestAddress(0x8000)).unwrap();
        memory.write_obj(44_u64, GuestAddress(0x8008)).unwrap();
        sent += 1;
        memory.write_obj(sent, GuestAddress(0x9002)).unwrap();
        kick.write(1).unwrap();
    };
    let until = |what: &str, reached: &dyn Fn() -> bool| {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !reached() {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let before = driver.seen().0[1];
    send();
    until("a call on vector 1", &|| driver.seen().0[1] > before);
    driver.interrupt.set_vector(Some(1), 2);
    until("the last call of the old vector, again on vector 2", &|| driver.seen().0[2] > 0);
    let before = driver.seen();
    send();
    until("a call on vector 2", &|| driver.seen().0[2] > before.0[2]);
    assert_eq!(driver.seen().0[1], before.0[1]);
    assert!(!driver.seen().1);
    driver.enable(false);
    until("the last call, again by INTx", &|| driver.seen().1);
    driver.interrupt.take_isr();
    assert!(!driver.seen().1);
    send();
    until("a call by INTx", &|| driver.seen().1);
    let back = vhost.stop().unwrap();
    assert_eq!((back[1].ring.next_avail(), back[1].ring.next_used()), (3, 3));
    assert!(!driver.interrupt.is_reset_needed());
}
