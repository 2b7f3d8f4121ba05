//! What the machine would give, and a function with three BARs.

#![allow(clippy::unwrap_used, reason = "this is a test's")]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use crate::config::Uuid;
use crate::cpr::Mode;
use crate::cpr::format::{HeaderInfo, StateReader, StateWriter};
use crate::devices::pci::msi::{Doorbells, MsiMessage, MsiVector, MsiVectors};
use crate::devices::pci::{
    Bar, BarKind, BarSpec, ConfigSpace, HostBridge, Identity, PciBus, PciConfigState, PciFunction, Windows,
};
use crate::devices::{Device, DeviceError, IrqLine};

/// A line that remembers its level.
#[derive(Default)]
pub(crate) struct Line(pub AtomicBool);

impl IrqLine for Line {
    fn set(&self, high: bool) {
        self.0.store(high, Ordering::SeqCst);
    }
}

/// Vectors that count what they would send.
#[derive(Default)]
pub(crate) struct Vectors(pub Mutex<Vec<Arc<Vector>>>);

pub(crate) struct Vector {
    eventfd: EventFd,
    inner: Mutex<(Option<MsiMessage>, Vec<MsiMessage>)>,
}

impl Vector {
    /// Sends what was signalled, as KVM does while it is attached.
    fn deliver(&self) {
        let mut inner = self.inner.lock().unwrap();
        if let Some(message) = inner.0
            && self.eventfd.read().is_ok()
        {
            inner.1.push(message);
        }
    }

    pub(crate) fn sent(&self) -> Vec<MsiMessage> {
        self.deliver();
        self.inner.lock().unwrap().1.clone()
    }
}

struct Handle(Arc<Vector>);

impl MsiVector for Handle {
    fn eventfd(&self) -> &EventFd {
        &self.0.eventfd
    }

    fn route(&self, message: Option<MsiMessage>) {
        self.0.deliver();
        self.0.inner.lock().unwrap().0 = message;
        self.0.deliver();
    }

    fn hold(&self, _message: Option<MsiMessage>) {
        self.0.deliver();
        self.0.inner.lock().unwrap().0 = None;
    }

    fn pending(&self) -> bool {
        self.0.deliver();
        let signalled = self.0.eventfd.read().is_ok();
        if signalled {
            self.0.eventfd.write(1).unwrap();
        }
        signalled
    }
}

impl MsiVectors for Vectors {
    fn vector_on(&self, eventfd: EventFd) -> Result<Arc<dyn MsiVector>, DeviceError> {
        let vector = Arc::new(Vector { eventfd, inner: Mutex::default() });
        self.0.lock().unwrap().push(Arc::clone(&vector));
        Ok(Arc::new(Handle(vector)))
    }
}

/// Doorbells: which descriptor is where.
#[derive(Default)]
pub(crate) struct Bells(pub Mutex<BTreeMap<u64, i32>>);

impl Doorbells for Bells {
    fn assign(&self, address: u64, fd: &EventFd) -> io::Result<()> {
        match self.0.lock().unwrap().insert(address, fd.as_raw_fd()) {
            None => Ok(()),
            Some(_) => Err(io::ErrorKind::AlreadyExists.into()),
        }
    }

    fn deassign(&self, address: u64, fd: &EventFd) -> io::Result<()> {
        let removed = self.0.lock().unwrap().remove(&address);
        if removed == Some(fd.as_raw_fd()) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }
}

/// Its BARs: 32-bit memory, 64-bit memory, ports.
pub(crate) const BARS: [BarSpec; 3] = [
    BarSpec { index: 0, kind: BarKind::Memory32, prefetchable: false, size: 0x1000 },
    BarSpec { index: 2, kind: BarKind::Memory64, prefetchable: true, size: 0x1_0000 },
    BarSpec { index: 4, kind: BarKind::Io, prefetchable: false, size: 0x20 },
];

/// A function that remembers where its BARs are and what was written to them.
pub(crate) struct Function {
    slot: u32,
    config: Mutex<ConfigSpace>,
    pub placed: Mutex<BTreeMap<usize, u64>>,
    pub written: Mutex<Vec<(usize, u64, Vec<u8>)>>,
}

impl Function {
    pub(crate) fn new(slot: u32) -> Arc<Self> {
        let identity = Identity { vendor: 0x1234, device: 0x5678, class: 0xff_0000, ..Identity::default() };
        let config = Mutex::new(ConfigSpace::new(identity, &BARS));
        Arc::new(Self { slot, config, placed: Mutex::default(), written: Mutex::default() })
    }
}

impl PciFunction for Function {
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        self.config.lock().unwrap().read(offset, data);
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        self.config.lock().unwrap().write(offset, data);
    }

    fn bars(&self) -> Vec<Bar> {
        self.config.lock().unwrap().bars()
    }

    fn place_bar(&self, bar: usize, at: Option<u64>) {
        let mut placed = self.placed.lock().unwrap();
        match at {
            Some(at) => assert_eq!(placed.insert(bar, at), None, "placed twice"),
            None => assert!(placed.remove(&bar).is_some(), "not placed"),
        }
    }

    fn read_bar(&self, bar: usize, offset: u64, data: &mut [u8]) {
        data.fill((bar as u64 + offset) as u8);
    }

    fn write_bar(&self, bar: usize, offset: u64, data: &[u8]) {
        self.written.lock().unwrap().push((bar, offset, data.to_vec()));
    }
}

impl Device for Function {
    fn id(&self) -> &'static str {
        "fake"
    }

    fn save(&self, out: &mut StateWriter) -> Result<(), DeviceError> {
        Ok(out.put(self.slot, &self.config.lock().unwrap().state())?)
    }

    fn load(&self, state: &mut StateReader) -> Result<(), DeviceError> {
        let saved: PciConfigState = state.take(self.slot)?;
        self.config.lock().unwrap().load(&saved).map_err(DeviceError::impossible("fake"))
    }
}

/// Memory from 0xc000_0000 and from 256 GiB, ports from 0xc000.
pub(crate) fn windows() -> Windows {
    Windows { low: 0xc000_0000..0xe000_0000, high: 0x40_0000_0000..0x60_0000_0000, io: 0xc000..0x1_0000 }
}

/// A bus with the host bridge and a function in each of these slots.
pub(crate) fn bus(slots: &[u8]) -> (PciBus, Vec<Arc<Function>>) {
    let mut bus = PciBus::new(windows());
    bus.add(0, Arc::new(HostBridge::new())).unwrap();
    let functions: Vec<_> = slots.iter().map(|slot| Function::new((*slot).into())).collect();
    for (slot, function) in slots.iter().zip(&functions) {
        bus.add(*slot, Arc::clone(function) as Arc<dyn PciFunction>).unwrap();
    }
    (bus, functions)
}

/// State with what `put` puts in it.
pub(crate) fn saved(put: impl FnOnce(&mut StateWriter)) -> StateReader {
    let mut out = StateWriter::new(HeaderInfo {
        mode: Mode::CprTransfer,
        guest_name: "test".into(),
        guest_uuid: Uuid::random(),
        writer: "test".into(),
        created: 0,
    });
    put(&mut out);
    StateReader::parse(&out.finish().unwrap()).unwrap()
}
