//! The device with a driver at its queues.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::config::Aio;
use super::super::engine::{Completion, Operation};
use super::super::image::ImageError;
use super::*;
use crate::config::Uuid;
use crate::cpr::format::HeaderInfo;
use crate::devices::IrqLine;
use crate::devices::pci::fake::{Line, Vectors};
use crate::devices::pci::{Intx, IntxLine, Msix};
use crate::devices::virtio::Interrupt;

const SLOT: u32 = 3;
const SIZE: usize = 1 << 20;
/// Where each queue's rings and buffers are.
const STRIDE: u64 = 0x4_0000;
/// The most requests that a driver makes here before it begins anew at the first place.
const PLACES: u16 = 40;
const WITHIN: Duration = Duration::from_secs(5);
const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH_ALL: u32 = 4;

/// What goes with a request.
#[derive(Clone, Copy)]
enum Data<'a> {
    None,
    Write(&'a [u8]),
    Read(u32),
}

/// A driver.
struct Driver {
    device: Block,
    memory: Arc<GuestMemoryMmap>,
    interrupt: Arc<Interrupt>,
    kicks: Vec<Arc<EventFd>>,
    /// For each queue: requests made available, requests seen used.
    counts: BTreeMap<u16, (u16, u16)>,
    queues: Vec<ActiveQueue>,
}

impl Driver {
    /// A driver that has just found a disk.
    fn of(device: Block) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), SIZE)]).unwrap();
        let lines = std::array::from_fn(|_| IntxLine::new(Arc::<Line>::default() as Arc<dyn IrqLine>));
        let msix = Arc::new(Msix::new(1, &Vectors::default()).unwrap());
        let count = device.queue_sizes().len() as u16;
        let interrupt = Interrupt::new(count.into(), msix, Intx::new(&lines, 1));
        let kicks: Vec<_> = (0..count).map(|_| Arc::new(EventFd::new(EFD_NONBLOCK).unwrap())).collect();
        let queue = |index: u16| {
            let base = (u64::from(index) * STRIDE) as u32;
            let mut ring = Queue::new(QUEUE_SIZE).unwrap();
            ring.set_desc_table_address(Some(base + 0x1000), None);
            ring.set_avail_ring_address(Some(base + 0x2000), None);
            ring.set_used_ring_address(Some(base + 0x3000), None);
            ring.set_ready(true);
            ActiveQueue::new(index, ring, Arc::clone(&kicks[usize::from(index)]), Arc::clone(&interrupt))
        };
        let queues = (0..count).map(queue).collect();
        Self { device, memory: Arc::new(memory), interrupt, kicks, counts: BTreeMap::new(), queues }
    }

    fn started(device: Block) -> Self {
        let mut driver = Self::of(device);
        driver.start();
        driver
    }

    fn start(&mut self) {
        let (memory, queues) = (Arc::clone(&self.memory), std::mem::take(&mut self.queues));
        self.device.start(Run { memory, features: FLUSH, queues }).unwrap();
    }

    fn stop(&mut self) {
        self.queues = self.device.stop(Instant::now() + WITHIN).unwrap();
    }

    fn kick(&self, queue: u16) {
        self.kicks[usize::from(queue)].write(1).unwrap();
    }

    /// Makes a request available, without a word to the device.
    fn offer(&mut self, queue: u16, request: u32, sector: u64, data: Data<'_>) {
        let place = self.counts.entry(queue).or_default().0 % PLACES;
        let buffer = buffer(queue, place);
        self.memory.write_obj(u64::from(request), GuestAddress(buffer)).unwrap();
        self.memory.write_obj(sector, GuestAddress(buffer + 8)).unwrap();
        self.memory.write_obj(0xff_u8, GuestAddress(buffer + 16)).unwrap();
        let (length, writable) = match data {
            Data::None => (0, false),
            Data::Write(bytes) => {
                self.memory.write_slice(bytes, GuestAddress(buffer + 0x200)).unwrap();
                (bytes.len() as u32, false)
            }
            Data::Read(length) => (length, true),
        };
        self.chain(queue, &[(buffer, 16, false), (buffer + 0x200, length, writable), (buffer + 16, 1, true)]);
    }

    /// Makes a chain of up to three buffers available: address, bytes, whether the device writes them.
    fn chain(&mut self, queue: u16, buffers: &[(u64, u32, bool)]) {
        let base = u64::from(queue) * STRIDE;
        let count = self.counts.entry(queue).or_default();
        let head = 3 * (count.0 % PLACES);
        for ((address, length, writable), at) in buffers.iter().zip(head..) {
            let next = at + 1 < head + buffers.len() as u16;
            let descriptor = base + 0x1000 + 16 * u64::from(at);
            self.memory.write_obj(*address, GuestAddress(descriptor)).unwrap();
            self.memory.write_obj(*length, GuestAddress(descriptor + 8)).unwrap();
            let flags = u16::from(*writable) << 1 | u16::from(next);
            self.memory.write_obj(flags, GuestAddress(descriptor + 12)).unwrap();
            self.memory.write_obj(at + 1, GuestAddress(descriptor + 14)).unwrap();
        }
        let slot = base + 0x2004 + 2 * u64::from(count.0 % QUEUE_SIZE);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        count.0 = count.0.wrapping_add(1);
        self.memory.write_obj(count.0, GuestAddress(base + 0x2002)).unwrap();
    }

    /// How many requests of a queue the device has answered.
    fn answered(&self, queue: u16) -> u16 {
        self.memory.read_obj(GuestAddress(u64::from(queue) * STRIDE + 0x3002)).unwrap()
    }

    /// Waits for a queue's next answer: its status, and what was read.
    fn used(&mut self, queue: u16) -> (u8, Vec<u8>) {
        let seen = self.counts.entry(queue).or_default().1;
        let deadline = Instant::now() + WITHIN;
        while self.answered(queue) == seen {
            assert!(Instant::now() < deadline, "queue {queue} gives no answer");
            std::thread::sleep(Duration::from_millis(1));
        }
        self.counts.entry(queue).or_default().1 = seen.wrapping_add(1);
        let element = u64::from(queue) * STRIDE + 0x3004 + 8 * u64::from(seen % QUEUE_SIZE);
        let head: u32 = self.memory.read_obj(GuestAddress(element)).unwrap();
        let length: u32 = self.memory.read_obj(GuestAddress(element + 4)).unwrap();
        let buffer = buffer(queue, head as u16 / 3);
        let mut read = vec![0; length.saturating_sub(1) as usize];
        self.memory.read_slice(&mut read, GuestAddress(buffer + 0x200)).unwrap();
        (self.memory.read_obj(GuestAddress(buffer + 16)).unwrap(), read)
    }

    fn write(&mut self, queue: u16, sector: u64, bytes: &[u8]) -> u8 {
        self.offer(queue, OUT, sector, Data::Write(bytes));
        self.kick(queue);
        self.used(queue).0
    }

    fn read(&mut self, queue: u16, sector: u64, length: u32) -> (u8, Vec<u8>) {
        self.offer(queue, IN, sector, Data::Read(length));
        self.kick(queue);
        self.used(queue)
    }

    fn flush(&mut self, queue: u16) -> u8 {
        self.offer(queue, FLUSH_ALL, 0, Data::None);
        self.kick(queue);
        self.used(queue).0
    }
}

/// Where a queue's request has its header, its status and, after 0x200 bytes, its data.
fn buffer(queue: u16, place: u16) -> u64 {
    u64::from(queue) * STRIDE + 0x4000 + 0x1000 * u64::from(place)
}

/// An engine whose disk answers nothing before it is let to.
struct Stalled {
    held: Vec<(u64, Instant)>,
    disk: Arc<Stall>,
}

struct Stall {
    taken: AtomicBool,
    over: AtomicBool,
    event: EventFd,
}

impl Stall {
    fn new() -> Arc<Self> {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        Arc::new(Self { taken: AtomicBool::new(false), over: AtomicBool::new(false), event })
    }

    /// Waits until it has a request.
    fn wait(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.taken.load(Ordering::SeqCst) {
            assert!(Instant::now() < deadline, "the disk was given no request");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
        self.event.write(1).unwrap();
    }
}

impl Engine for Stalled {
    fn submit(&mut self, token: u64, _operation: Operation) {
        self.held.push((token, Instant::now()));
        self.disk.taken.store(true, Ordering::SeqCst);
    }

    fn kick(&mut self) {}

    fn reap(&mut self, done: &mut Vec<Completion>) {
        let _ = self.disk.event.read();
        if self.disk.over.load(Ordering::SeqCst) {
            done.extend(self.held.drain(..).map(|(token, _)| Completion { token, result: Ok(()) }));
        }
    }

    fn has_done(&mut self) -> bool {
        self.disk.over.load(Ordering::SeqCst) && !self.held.is_empty()
    }

    fn event(&self) -> &EventFd {
        &self.disk.event
    }

    fn in_flight(&self) -> usize {
        self.held.len()
    }

    fn oldest(&self) -> Option<(&'static str, Instant)> {
        self.held.first().map(|(_, since)| ("write", *since))
    }
}

fn image() -> (tempfile::TempDir, BlockConfig) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let config = toml::from_str(&format!("path = {path:?}\nqueues = 2")).unwrap();
    (directory, config)
}

fn open(config: &BlockConfig) -> Block {
    Block::open("disk0", config).unwrap()
}

/// A disk whose first queue is stalled, and whose second is not.
fn half_stalled(config: &BlockConfig) -> (Driver, Arc<Stall>) {
    let disk = Stall::new();
    let engine = |index, backing: &Backing| match index {
        0 => Ok(Box::new(Stalled { held: Vec::new(), disk: Arc::clone(&disk) }) as Box<dyn Engine>),
        _ => engine::open(backing, None, QUEUE_SIZE),
    };
    let device = Block::with("disk0", config, Image::open(config).unwrap(), false, engine).unwrap();
    (Driver::started(device), disk)
}

fn is_locked(config: &BlockConfig) -> bool {
    matches!(Image::open(config), Err(ImageError::InUse { .. }))
}

fn saved(device: &Block, mode: Mode) -> Vec<u8> {
    let mut out = StateWriter::new(HeaderInfo {
        mode,
        guest_name: "g".into(),
        guest_uuid: Uuid([7; 16]),
        writer: "test".into(),
        created: 0,
    });
    device.save(SLOT, &mut out).unwrap();
    out.finish().unwrap()
}

fn load(device: &Block, state: &[u8]) -> Result<(), DeviceError> {
    device.load(SLOT, &mut StateReader::parse(state).unwrap())
}

#[test]
fn what_is_written_on_any_queue_is_in_the_image_and_read_back_on_any_other() {
    for aio in [Aio::IoUring, Aio::Threads] {
        let (_directory, config) = image();
        let config = BlockConfig { queues: 4, aio: Some(aio), ..config };
        let device = match Block::open("disk0", &config) {
            Err(error) if aio == Aio::IoUring => {
                crate::testing::skip("lab", error);
                continue;
            }
            device => device.unwrap(),
        };
        let mut driver = Driver::started(device);
        for queue in 0..4_u16 {
            assert_eq!(driver.write(queue, 8 * u64::from(queue), &[queue as u8 + 1; 2048]), 0);
        }
        assert_eq!(driver.flush(2), 0);
        for queue in 0..4_u16 {
            let sector = 8 * u64::from(3 - queue);
            assert_eq!(driver.read(queue, sector, 2048), (0, vec![4 - queue as u8; 2048]));
        }
        assert_eq!(driver.read(0, 2048, 512), (1, Vec::new()), "beyond its end");
        let file = std::fs::read(&config.path).unwrap();
        assert_eq!((&file[..2048], file[2048], file[4096]), (&[1; 2048][..], 0, 2));
    }
}

#[test]
fn a_stop_with_a_request_under_way_is_refused_and_nothing_of_the_disk_stands_still() {
    let (_directory, config) = image();
    let (mut driver, disk) = half_stalled(&config);
    driver.offer(0, OUT, 0, Data::Write(&[1; 512]));
    driver.kick(0);
    disk.wait();
    assert_eq!(driver.write(1, 8, &[2; 512]), 0);
    let refused = driver.device.stop(Instant::now() + Duration::from_millis(50)).err().unwrap();
    let message = refused.to_string();
    assert!(matches!(refused, DeviceError::Busy { .. }), "{message}");
    assert!(message.contains("disk0") && message.contains("write"), "{message}");
    assert_eq!(driver.read(1, 8, 512), (0, vec![2; 512]));
    assert_eq!(driver.answered(0), 0);
    disk.end();
    assert_eq!(driver.used(0).0, 0);
    assert_eq!(driver.write(0, 16, &[3; 512]), 0);
    driver.stop();
    assert_eq!(driver.queues.len(), 2);
}

#[test]
fn a_disk_that_answers_before_the_deadline_stops_with_its_answers_given() {
    let (_directory, config) = image();
    let (mut driver, disk) = half_stalled(&config);
    driver.offer(0, OUT, 0, Data::Write(&[1; 512]));
    driver.kick(0);
    disk.wait();
    let ending = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        disk.end();
    });
    driver.stop();
    assert_eq!(driver.answered(0), 1);
    ending.join().unwrap();
}

#[test]
fn a_stop_and_a_start_lose_no_request() {
    let (_directory, config) = image();
    let mut driver = Driver::started(open(&config));
    for round in 0..300_u16 {
        let (queue, sector, bytes) = (round % 2, 8 * u64::from(round % 200), [round as u8; 512]);
        driver.offer(queue, OUT, sector, Data::Write(&bytes));
        driver.kick(queue);
        driver.stop();
        driver.start();
        assert_eq!(driver.used(queue).0, 0, "write {round}");
        driver.stop();
        // Made available while nobody looks, and without a notification that would still be heard.
        driver.offer(queue, IN, sector, Data::Read(512));
        driver.start();
        assert_eq!(driver.used(queue), (0, bytes.to_vec()), "read {round}");
    }
    driver.stop();
    let places: Vec<_> = driver.queues.iter().map(|q| (q.ring.next_avail(), q.ring.next_used())).collect();
    assert_eq!(places, [(300, 300), (300, 300)]);
}

#[test]
fn a_broken_chain_needs_a_reset_and_what_was_begun_is_still_answered() {
    for aio in [None, Some(Aio::Threads)] {
        let (_directory, config) = image();
        let mut driver = Driver::started(open(&BlockConfig { aio, ..config }));
        driver.offer(0, OUT, 0, Data::Write(&[1; 512]));
        driver.chain(0, &[(buffer(0, 1), 16, false)]);
        driver.kick(0);
        assert_eq!(driver.used(0).0, 0);
        assert!(driver.interrupt.is_reset_needed());
        driver.offer(0, OUT, 0, Data::Write(&[2; 512]));
        driver.kick(0);
        driver.stop();
        assert_eq!(driver.answered(0), 1);
    }
}

#[test]
fn a_broken_queue_does_not_keep_another_from_ending_what_it_has_begun() {
    let (_directory, config) = image();
    let (mut driver, disk) = half_stalled(&config);
    driver.offer(0, OUT, 0, Data::Write(&[1; 512]));
    driver.kick(0);
    while driver.device.stop(Instant::now()).map(|queues| driver.queues = queues).is_ok() {
        driver.start();
    }
    driver.chain(1, &[(u64::MAX - 8, 16, false), (buffer(1, 0), 1, true)]);
    driver.kick(1);
    let deadline = Instant::now() + WITHIN;
    while !driver.interrupt.is_reset_needed() {
        assert!(Instant::now() < deadline, "no reset is asked for");
        std::thread::sleep(Duration::from_millis(1));
    }
    disk.end();
    assert_eq!(driver.used(0).0, 0);
    driver.stop();
    assert_eq!(driver.answered(1), 0);
}

#[test]
fn an_image_is_never_free_while_its_disk_moves_and_stays_with_the_source_after_a_rollback() {
    let (_directory, config) = image();
    let mut source = Driver::started(open(&config));
    assert_eq!(source.write(0, 0, &[7; 512]), 0);
    source.stop();
    let mut fds = FdTable::new();
    source.device.descriptors(Mode::CprTransfer, &mut fds).unwrap();
    let state = saved(&source.device, Mode::CprTransfer);
    let target = Block::adopt("disk0", &config, &mut fds).unwrap();
    load(&target, &state).unwrap();
    assert!(is_locked(&config));
    // The target gives up.
    drop(target);
    assert!(is_locked(&config));
    source.start();
    assert_eq!(source.read(1, 0, 512), (0, vec![7; 512]));
    // And once more, to its end.
    source.stop();
    source.device.descriptors(Mode::CprTransfer, &mut fds).unwrap();
    let target = Block::adopt("disk0", &config, &mut fds).unwrap();
    load(&target, &saved(&source.device, Mode::CprTransfer)).unwrap();
    drop(source);
    assert!(is_locked(&config));
    let mut target = Driver::started(target);
    assert_eq!(target.read(0, 0, 512), (0, vec![7; 512]));
    drop(target);
    assert!(!is_locked(&config));
}

#[test]
fn an_image_that_was_deleted_stands_in_the_way_of_a_reboot_and_of_nothing_else() {
    let (_directory, config) = image();
    let device = open(&config);
    assert!(device.blockers(Mode::CprReboot).is_empty());
    std::fs::remove_file(&config.path).unwrap();
    assert!(device.blockers(Mode::CprTransfer).is_empty() && device.blockers(Mode::CprExec).is_empty());
    let blockers = device.blockers(Mode::CprReboot);
    assert_eq!((blockers.len(), &*blockers[0].part), (1, "disk0"));
    assert!(blockers[0].reason.contains("disk.img is no longer where it was"), "{}", blockers[0]);
}

#[test]
fn nothing_travels_over_a_reboot() {
    let (_directory, config) = image();
    let mut fds = FdTable::new();
    open(&config).descriptors(Mode::CprReboot, &mut fds).unwrap();
    assert_eq!(fds.iter().count(), 0);
}

#[test]
fn an_image_that_grew_is_refused_when_it_is_opened_again_unless_that_is_insisted_on() {
    let (_directory, config) = image();
    let device = open(&config);
    let state = saved(&device, Mode::CprReboot);
    drop(device);
    load(&open(&config), &state).unwrap();
    File::options().append(true).open(&config.path).unwrap().set_len(2 << 20).unwrap();
    let message = load(&open(&config), &state).unwrap_err().to_string();
    for named in ["disk0: ", "size was 1048576 bytes and is 2097152 bytes", "--set disk0.changed=accept"] {
        assert!(message.contains(named), "{message}");
    }
    load(&open(&BlockConfig { accept_changed: true, ..config }), &state).unwrap();
}

#[test]
fn another_image_in_its_place_is_refused_and_the_old_one_is_taken_from_elsewhere() {
    let (directory, config) = image();
    let device = open(&config);
    let state = saved(&device, Mode::CprReboot);
    drop(device);
    let elsewhere = directory.path().join("moved.img");
    std::fs::rename(&config.path, &elsewhere).unwrap();
    File::create(&config.path).unwrap().set_len(1 << 20).unwrap();
    let message = load(&open(&config), &state).unwrap_err().to_string();
    assert!(message.contains("inode was") && message.contains("--set disk0.path=PATH"), "{message}");
    load(&open(&BlockConfig { path: elsewhere, ..config }), &state).unwrap();
}
