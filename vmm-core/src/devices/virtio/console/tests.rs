//! The device with queues in its hands and sockets at its ports.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_manager::{EventManager, SubscriberOps};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::control::Message;
use super::*;
use crate::config::{ChardevConfig, Uuid};
use crate::cpr::Mode;
use crate::cpr::fds::FdTable;
use crate::cpr::format::{HeaderInfo, StateReader, StateWriter};
use crate::devices::chardev::Chardev;
use crate::devices::pci::fake::{Line, Vectors};
use crate::devices::pci::{Intx, IntxLine, Msix};
use crate::devices::virtio::{ActiveQueue, Interrupt, Run, VirtioDevice};
use crate::devices::{IrqLine, Subscriber};

const SLOT: u32 = 3;
const MULTIPORT: u64 = 2;
/// Where each queue's rings and buffers are.
const STRIDE: u64 = 0x2_0000;
/// A named port's queues, and those for control.
const CONTROL_IN: u16 = 2;
const CONTROL_OUT: u16 = 3;
const AGENT_IN: u16 = 4;
const AGENT_OUT: u16 = 5;

fn header() -> HeaderInfo {
    HeaderInfo {
        mode: Mode::CprTransfer,
        guest_name: "g".into(),
        guest_uuid: Uuid([7; 16]),
        writer: "test".into(),
        created: 0,
    }
}

/// A driver of one console with one named port, and the host's side of it.
struct Rig {
    device: Arc<dyn VirtioDevice>,
    memory: Arc<GuestMemoryMmap>,
    manager: EventManager<Subscriber>,
    interrupt: Arc<Interrupt>,
    /// For each queue: chains made available, chains seen used.
    counts: BTreeMap<u16, (u16, u16)>,
    queues: Vec<ActiveQueue>,
}

fn config(directory: &std::path::Path) -> ConsoleConfig {
    let ports = [("agent".to_owned(), ChardevConfig::Unix(directory.join("agent")))];
    ConsoleConfig { console: Some(ChardevConfig::Null), ports: ports.into(), ..ConsoleConfig::default() }
}

fn device(
    config: &ConsoleConfig,
    mut chardev: impl FnMut(&str, &ChardevConfig) -> Chardev,
) -> Arc<dyn VirtioDevice> {
    let ports = config.numbered().into_iter().map(|(number, name, backend)| {
        (number, name.map(str::to_owned), chardev(&format!("con0.{number}"), backend))
    });
    Arc::new(Console::new("con0", ports.collect()).unwrap())
}

impl Rig {
    fn new(directory: &std::path::Path) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        Self::of(
            device(&config(directory), |id, backend| Chardev::open(id, backend).unwrap()),
            Arc::new(memory),
        )
    }

    fn of(device: Arc<dyn VirtioDevice>, memory: Arc<GuestMemoryMmap>) -> Self {
        let mut manager = EventManager::new().unwrap();
        manager.add_subscriber(device.subscriber().unwrap());
        let lines = std::array::from_fn(|_| IntxLine::new(Arc::<Line>::default() as Arc<dyn IrqLine>));
        let msix = Arc::new(Msix::new(1, &Vectors::default()).unwrap());
        let interrupt = Interrupt::new(6, msix, Intx::new(&lines, 1));
        Self { device, memory, manager, interrupt, counts: BTreeMap::new(), queues: Vec::new() }
    }

    fn start(&mut self) {
        let queues = if self.queues.is_empty() {
            (0..6).map(|index| self.queue(index)).collect()
        } else {
            std::mem::take(&mut self.queues)
        };
        self.device.start(Run { memory: Arc::clone(&self.memory), features: MULTIPORT, queues }).unwrap();
    }

    fn queue(&self, index: u16) -> ActiveQueue {
        let base = (u64::from(index) * STRIDE) as u32;
        let mut ring = Queue::new(128).unwrap();
        ring.set_desc_table_address(Some(base + 0x1000), None);
        ring.set_avail_ring_address(Some(base + 0x2000), None);
        ring.set_used_ring_address(Some(base + 0x3000), None);
        ring.set_ready(true);
        ActiveQueue::new(
            index,
            ring,
            Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
            Arc::clone(&self.interrupt),
        )
    }

    /// Makes a chain of one buffer available: these bytes to read, or room for as many to write.
    fn offer(&mut self, queue: u16, bytes: &[u8], writable: bool) {
        let base = u64::from(queue) * STRIDE;
        let count = self.counts.entry(queue).or_default();
        let at = count.0 % 128;
        let (descriptor, buffer) =
            (base + 0x1000 + 16 * u64::from(at), base + 0x4000 + 0x100 * u64::from(at));
        self.memory.write_slice(bytes, GuestAddress(buffer)).unwrap();
        self.memory.write_obj(buffer, GuestAddress(descriptor)).unwrap();
        self.memory.write_obj(bytes.len() as u32, GuestAddress(descriptor + 8)).unwrap();
        self.memory.write_obj(u16::from(writable) << 1, GuestAddress(descriptor + 12)).unwrap();
        self.memory.write_obj(at, GuestAddress(base + 0x2004 + 2 * u64::from(at))).unwrap();
        count.0 = count.0.wrapping_add(1);
        self.memory.write_obj(count.0, GuestAddress(base + 0x2002)).unwrap();
    }

    /// Turns the event loop until a queue's next chain was used, and gives what was written to it.
    fn used(&mut self, queue: u16) -> Option<Vec<u8>> {
        let base = u64::from(queue) * STRIDE;
        let seen = self.counts.entry(queue).or_default().1;
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.memory.read_obj::<u16>(GuestAddress(base + 0x3002)).unwrap() == seen {
            if Instant::now() > deadline {
                return None;
            }
            self.turn();
        }
        self.counts.entry(queue).or_default().1 = seen.wrapping_add(1);
        let element = base + 0x3004 + 8 * u64::from(seen % 128);
        let head: u32 = self.memory.read_obj(GuestAddress(element)).unwrap();
        let length: u32 = self.memory.read_obj(GuestAddress(element + 4)).unwrap();
        let mut bytes = vec![0; length as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(base + 0x4000 + 0x100 * u64::from(head))).unwrap();
        Some(bytes)
    }

    fn turn(&mut self) {
        self.manager.run_with_timeout(1).unwrap();
    }

    fn say(&mut self, port: u32, event: u16, value: u16) {
        let mut bytes = port.to_le_bytes().to_vec();
        bytes.extend([event.to_le_bytes(), value.to_le_bytes()].concat());
        self.offer(CONTROL_OUT, &bytes, false);
    }

    /// Does what a driver does at its start, and gives what it was told.
    fn introduce(&mut self) -> Vec<(Message, Vec<u8>)> {
        for _ in 0..16 {
            self.offer(CONTROL_IN, &[0; 64], true);
        }
        self.say(u32::MAX, 0, 1);
        self.say(0, 3, 1);
        self.say(1, 3, 1);
        self.say(1, 6, 1);
        self.start();
        (0..6)
            .map(|_| {
                let bytes = self.used(CONTROL_IN).unwrap();
                (Message::from_bytes(&bytes).unwrap(), bytes[8..].to_vec())
            })
            .collect()
    }

    fn stop(&mut self) {
        self.queues = self.device.stop(Instant::now() + Duration::from_secs(5)).unwrap();
        self.device.quiesce();
    }
}

fn connect(directory: &std::path::Path) -> UnixStream {
    let client = UnixStream::connect(directory.join("agent")).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    client
}

#[test]
fn a_driver_is_told_of_each_port_what_it_is_what_it_is_called_and_whether_somebody_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(directory.path());
    let told = rig.introduce();
    let of = |port, event| {
        told.iter().filter(move |(m, _)| (m.port, m.event) == (port, event)).collect::<Vec<_>>()
    };
    assert_eq!((of(0, 1).len(), of(1, 1).len(), of(0, 4).len(), of(0, 7).len()), (1, 1, 1, 0));
    assert_eq!(of(1, 7)[0].1, b"agent");
    // The console is on nothing, which is always there; nobody is at the socket yet.
    assert_eq!((of(0, 6)[0].0.value, of(1, 6)[0].0.value), (1, 0));
    let _client = connect(directory.path());
    let arrived = Message::from_bytes(&rig.used(CONTROL_IN).unwrap()).unwrap();
    assert_eq!(arrived, Message { port: 1, event: 6, value: 1 });
}

#[test]
fn a_driver_is_told_nothing_of_a_port_that_it_has_not_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(directory.path());
    for _ in 0..16 {
        rig.offer(CONTROL_IN, &[0; 64], true);
    }
    rig.say(0, 3, 1);
    rig.start();
    let mut told = || rig.used(CONTROL_IN).and_then(|bytes| Message::from_bytes(&bytes));
    let of = |port, event, value| Some(Message { port, event, value });
    assert_eq!([told(), told()], [of(0, 4, 1), of(0, 6, 1)]);
    let _client = connect(directory.path());
    assert_eq!(told(), None);
}

#[test]
fn bytes_go_both_ways_and_wait_for_whoever_is_not_ready() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(directory.path());
    rig.introduce();
    let mut client = connect(directory.path());
    rig.used(CONTROL_IN).unwrap();
    // The guest has no buffer yet: they wait in the socket.
    client.write_all(b"hello guest").unwrap();
    rig.turn();
    rig.stop();
    rig.offer(AGENT_IN, &[0; 5], true);
    rig.offer(AGENT_IN, &[0; 64], true);
    rig.offer(AGENT_OUT, b"hello host", false);
    rig.device.resume();
    rig.start();
    assert_eq!(rig.used(AGENT_IN).unwrap(), b"hello");
    assert_eq!(rig.used(AGENT_IN).unwrap(), b" guest");
    rig.used(AGENT_OUT).unwrap();
    let mut heard = [0; 10];
    client.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"hello host");
}

#[test]
fn a_port_that_the_guest_has_closed_takes_no_byte() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(directory.path());
    rig.introduce();
    rig.stop();
    rig.say(1, 6, 0);
    rig.device.resume();
    rig.start();
    let mut client = connect(directory.path());
    client.write_all(b"early").unwrap();
    rig.used(CONTROL_IN).unwrap();
    rig.stop();
    rig.offer(AGENT_IN, &[0; 64], true);
    rig.device.resume();
    rig.start();
    (0..20).for_each(|_| rig.turn());
    assert_eq!(rig.memory.read_obj::<u16>(GuestAddress(u64::from(AGENT_IN) * STRIDE + 0x3002)).unwrap(), 0);
    rig.stop();
    rig.say(1, 6, 1);
    rig.device.resume();
    rig.start();
    assert_eq!(rig.used(AGENT_IN).unwrap(), b"early");
}

#[test]
fn a_client_stays_connected_over_a_handover_and_no_byte_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let mut source = Rig::new(directory.path());
    source.introduce();
    let mut client = connect(directory.path());
    source.used(CONTROL_IN).unwrap();
    client.write_all(b"before").unwrap();
    source.stop();
    let mut fds = FdTable::new();
    source.device.descriptors(Mode::CprTransfer, &mut fds).unwrap();
    let mut out = StateWriter::new(header());
    source.device.save(SLOT, &mut out).unwrap();
    let bytes = out.finish().unwrap();
    client.write_all(b" and after").unwrap();
    source.device.hand_over();

    let adopted =
        device(&config(directory.path()), |id, backend| Chardev::adopt(id, backend, &mut fds).unwrap());
    let mut reader = StateReader::parse(&bytes).unwrap();
    adopted.load(SLOT, &mut reader).unwrap();
    reader.finish().unwrap();
    let mut target = Rig::of(adopted, Arc::clone(&source.memory));
    (target.counts, target.queues) = (source.counts.clone(), std::mem::take(&mut source.queues));
    drop(source);
    target.offer(AGENT_IN, &[0; 64], true);
    target.offer(AGENT_OUT, b"still here", false);
    target.device.resume();
    target.start();
    assert_eq!(target.used(AGENT_IN).unwrap(), b"before and after");
    let mut heard = [0; 10];
    client.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"still here");
}

#[test]
fn ports_that_are_not_this_devices_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::new(directory.path());
    let mut out = StateWriter::new(header());
    rig.device.save(SLOT, &mut out).unwrap();
    let bytes = out.finish().unwrap();
    let other = ConsoleConfig { console: Some(ChardevConfig::Null), ..ConsoleConfig::default() };
    let other = device(&other, |id, backend| Chardev::open(id, backend).unwrap());
    let error = other.load(SLOT, &mut StateReader::parse(&bytes).unwrap()).unwrap_err().to_string();
    assert!(error.contains("ports 0, 1") && error.contains("ports 0"), "{error}");
}

#[test]
fn names_that_no_guest_could_use_are_refused() {
    let with = |name: &str| ConsoleConfig {
        ports: [(name.to_owned(), ChardevConfig::Null)].into(),
        ..ConsoleConfig::default()
    };
    assert!(with("org.qemu.guest_agent.0").validate().is_ok());
    for name in ["", "two words", "ä", &"x".repeat(65)] {
        assert!(with(name).validate().is_err(), "{name}");
    }
    let many = (0..=MAX_PORTS).map(|n| (format!("p{n}"), ChardevConfig::File(PathBuf::from("/x"))));
    assert!(ConsoleConfig { ports: many.collect(), ..ConsoleConfig::default() }.validate().is_err());
}
