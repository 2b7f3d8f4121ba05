//! A bus with the device that is mistreated and one that is not, and a driver that keeps the rules.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::ram::{PIECES, Ram};
use super::subject::{Kind, Request, Subject, rng_request};
use crate::config::Uuid;
use crate::cpr::Mode;
use crate::cpr::fds::FdTable;
use crate::cpr::format::{HeaderInfo, StateReader, StateWriter};
use crate::devices::pci::fake::{Bells, Line, Vectors, windows};
use crate::devices::pci::{HostBridge, IntxLine, PciBus};
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::{VirtioPci, Wires};
use crate::devices::{Device, IrqLine};
use crate::x86::layout::PCI_ECAM_START;

/// The slot of the device that is mistreated, and of the one that is not.
pub(super) const SUBJECT: u8 = 5;
pub(super) const WITNESS: u8 = 9;
/// The most that anything may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// A queue of this driver: its size, and where it is.
const SIZE: u16 = 8;
pub(super) const DESCRIPTORS: u64 = 0x1000;
pub(super) const AVAILABLE: u64 = 0x2000;
pub(super) const USED: u64 = 0x3000;
pub(super) const BUFFERS: u64 = 0x4000;
/// From one queue's place to the next's.
pub(super) const STRIDE: u64 = 0x8000;
const VERSION_1: u64 = 1 << 32;

/// The machine. Its devices go before the RAM that they use.
pub(super) struct Machine {
    pub bus: PciBus,
    pub function: Arc<VirtioPci>,
    pub subject: Subject,
    /// Where the BARs of the two were put.
    bars: [u64; 2],
    pub ram: Ram,
}

impl Machine {
    pub(super) fn new(subject: Subject, ram: Ram) -> Self {
        let line = Arc::<Line>::default();
        let wires = Wires {
            memory: Arc::clone(&ram.memory),
            msi: Arc::<Vectors>::default(),
            doorbells: Arc::<Bells>::default(),
            lines: std::array::from_fn(|_| IntxLine::new(Arc::clone(&line) as Arc<dyn IrqLine>)),
        };
        let function = VirtioPci::new(SUBJECT, Arc::clone(&subject.device), wires.clone()).unwrap();
        let witness = VirtioPci::new(WITNESS, Arc::new(Rng::new("witness").unwrap()), wires).unwrap();
        let mut bus = PciBus::new(windows());
        bus.add(0, Arc::new(HostBridge::new())).unwrap();
        bus.add(SUBJECT, Arc::clone(&function) as _).unwrap();
        bus.add(WITNESS, witness).unwrap();
        let mut machine = Self { bus, function, subject, bars: [0; 2], ram };
        machine.bars = [SUBJECT, WITNESS].map(|slot| machine.bar(slot));
        machine
    }

    pub(super) fn set_config(&self, slot: u8, register: u64, data: &[u8]) {
        self.bus.write_memory(PCI_ECAM_START + (u64::from(slot) << 15) + register, data);
    }

    pub(super) fn config(&self, slot: u8, register: u64) -> u32 {
        let mut data = [0; 4];
        self.bus.read_memory(PCI_ECAM_START + (u64::from(slot) << 15) + register, &mut data);
        u32::from_le_bytes(data)
    }

    /// Where a function's BAR is, by its registers.
    pub(super) fn bar(&self, slot: u8) -> u64 {
        u64::from(self.config(slot, 0x10) & !0xf) | u64::from(self.config(slot, 0x14)) << 32
    }

    pub(super) fn put<T: ByteValued>(&self, address: u64, value: T) {
        // Where there is no RAM, nothing is written.
        let _ = self.ram.memory.write_obj(value, GuestAddress(address));
    }

    pub(super) fn get(&self, address: u64) -> u16 {
        self.ram.memory.read_obj(GuestAddress(address)).unwrap()
    }

    /// Stops and goes on. What was there before has then been looked at, or is about to be.
    pub(super) fn turn(&self) {
        if self.subject.kind == Kind::Block {
            // A disk that is stopped before it has looked does not look.
            std::thread::sleep(Duration::from_micros(200));
        }
        self.stop();
        self.function.resume();
    }

    pub(super) fn stop(&self) {
        self.function.quiesce(Instant::now() + PATIENCE).unwrap();
    }

    /// State of the whole machine, whose subject is stopped.
    pub(super) fn save(&self) -> Vec<u8> {
        let mut out = StateWriter::new(HeaderInfo {
            mode: Mode::CprTransfer,
            guest_name: "hostile".into(),
            guest_uuid: Uuid([7; 16]),
            writer: "test".into(),
            created: 0,
        });
        self.bus.functions().for_each(|function| function.save(&mut out).unwrap());
        self.bus.save(&mut out).unwrap();
        out.finish().unwrap()
    }

    /// The machine in the next process, with nothing loaded. This one, stopped, is gone.
    pub(super) fn successor(self) -> Self {
        let mut fds = FdTable::new();
        self.function.descriptors(Mode::CprTransfer, &mut fds).unwrap();
        self.function.hand_over();
        let subject = self.subject.adopt(&mut fds);
        let Self { ram, .. } = self;
        Self::new(subject, ram)
    }

    pub(super) fn load(&self, bytes: &[u8]) -> Result<(), String> {
        let mut state = StateReader::parse(bytes).map_err(|error| error.to_string())?;
        for function in self.bus.functions() {
            function.load(&mut state).map_err(|error| error.to_string())?;
        }
        self.bus.load(&mut state).map_err(|error| error.to_string())?;
        state.finish().map_err(|error| error.to_string())
    }

    /// Goes on after a load.
    pub(super) fn resume(&self) {
        self.bus.functions().for_each(|function| function.resume());
    }

    /// Resets both devices and sees that they answer, and that nothing was written outside of RAM.
    pub(super) fn judge(self) {
        for request in self.subject.requests() {
            self.serve(SUBJECT, &request);
        }
        self.serve(WITNESS, &rng_request());
        self.function.quiesce(Instant::now() + PATIENCE).unwrap();
        self.save();
        let Self { bus, function, subject, ram, .. } = self;
        drop((bus, function, subject));
        ram.check();
    }

    /// A driver that keeps the rules, from the reset on.
    fn serve(&self, slot: u8, request: &Request) {
        let bar = self.bars[usize::from(slot == WITNESS)];
        self.set_config(slot, 4, &[0, 4]);
        for (register, half) in [(0x10, bar as u32), (0x14, (bar >> 32) as u32)] {
            self.set_config(slot, register, &half.to_le_bytes());
        }
        self.set_config(slot, 4, &[6, 4]);
        let write = |offset: u64, data: &[u8]| {
            assert!(self.bus.write_memory(bar + offset, data), "slot {slot}: its BAR does not decode");
        };
        let status = || {
            let mut status = [0];
            assert!(self.bus.read_memory(bar + 20, &mut status));
            status[0]
        };
        write(20, &[0]);
        wait("the reset", || status() == 0);
        write(20, &[3]);
        for half in 0..2_u32 {
            write(8, &half.to_le_bytes());
            write(12, &((VERSION_1 >> (32 * half)) as u32).to_le_bytes());
        }
        write(20, &[11]);
        let place = |queue: u16| PIECES[1] + STRIDE * if slot == WITNESS { 8 } else { u64::from(queue) };
        for queue in (0..request.beside).filter(|queue| *queue != request.queue).chain([request.queue]) {
            let base = place(queue);
            self.ram.memory.write_slice(&vec![0; STRIDE as usize], GuestAddress(base)).unwrap();
            write(22, &queue.to_le_bytes());
            write(24, &SIZE.to_le_bytes());
            for (register, address) in [(32, DESCRIPTORS), (40, AVAILABLE), (48, USED)] {
                write(register, &(base + address).to_le_bytes());
            }
            write(28, &1_u16.to_le_bytes());
        }
        write(20, &[15]);
        assert_eq!(status(), 15, "slot {slot} does not start");
        if slot == SUBJECT {
            self.subject.prompt();
        }
        let base = place(request.queue);
        self.offer(base, request);
        write(0x3000 + 4 * u64::from(request.queue), &request.queue.to_le_bytes());
        wait("the answer", || self.get(base + USED + 2) == 1);
        let written: u32 = self.ram.memory.read_obj(GuestAddress(base + USED + 8)).unwrap();
        assert_eq!(written, request.written, "slot {slot}");
    }

    /// Makes a request available as the first of the queue at `base`.
    pub(super) fn offer(&self, base: u64, request: &Request) {
        let length = request.reads.len() as u32;
        let _ = self.ram.memory.write_slice(&request.reads, GuestAddress(base + BUFFERS));
        let chain = [(BUFFERS, length, 0_u16), (BUFFERS + 0x1000, request.writes, 2)];
        let chain: Vec<_> = chain.into_iter().filter(|(_, length, _)| *length > 0).collect();
        for (at, (address, length, flags)) in chain.iter().enumerate() {
            let more = u16::from(at + 1 < chain.len());
            self.descriptor(base, at as u16, base + address, *length, flags | more, at as u16 + 1);
        }
        self.put(base + AVAILABLE + 4, 0_u16);
        self.put(base + AVAILABLE + 2, 1_u16);
    }

    pub(super) fn descriptor(&self, base: u64, at: u16, address: u64, length: u32, flags: u16, next: u16) {
        let place = base + DESCRIPTORS + 16 * u64::from(at);
        self.put(place, address);
        self.put(place + 8, length);
        self.put(place + 12, flags);
        self.put(place + 14, next);
    }
}

pub(super) fn wait(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} does not come");
        std::thread::sleep(Duration::from_micros(50));
    }
}
