//! The root bus: who answers to which access.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::bar::Bar;
use super::function::PciFunction;
use super::ranges::{Hit, Ranges, Space};
use super::state::{PciBusState, PciRangeState};
use super::windows::Windows;
use crate::cpr::format::{StateReader, StateWriter};
use crate::devices::{Device, DeviceError};
use crate::x86::layout::{PCI_ADDRESS_PORT, PCI_DATA_PORT, PCI_ECAM_SIZE, PCI_ECAM_START};

const ID: &str = "pci";
/// How many slots the bus has.
pub const SLOTS: u8 = 32;

/// Bytes of a function's configuration space.
const CONFIG: u64 = 4096;
/// The registers that hold command and BARs.
const HEADER: usize = 0x40;
/// The address port: an access to the data port is one to configuration space.
const ADDRESS_ENABLE: u32 = 1 << 31;
/// Bits of the address port that there are.
const ADDRESS_BITS: u32 = 0x80ff_fffc;

/// The root bus.
pub struct PciBus {
    slots: Vec<Option<Arc<dyn PciFunction>>>,
    windows: Windows,
    /// The windows' room that is not given out yet.
    room: Windows,
    address: AtomicU32,
    /// Held over a write to configuration space and what follows from it.
    writing: Mutex<()>,
    ranges: RwLock<Ranges>,
}

impl std::fmt::Debug for PciBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PciBus").field("ranges", &self.ranges).finish_non_exhaustive()
    }
}

impl PciBus {
    /// A bus without functions.
    pub fn new(windows: Windows) -> Self {
        Self {
            slots: (0..SLOTS).map(|_| None).collect(),
            room: windows.clone(),
            windows,
            address: AtomicU32::new(0),
            writing: Mutex::new(()),
            ranges: RwLock::default(),
        }
    }

    /// Puts a function in a slot and gives addresses to its BARs, as a firmware does.
    pub fn add(&mut self, slot: u8, function: Arc<dyn PciFunction>) -> Result<(), DeviceError> {
        let refused = |found: String, expected: &str| DeviceError::State {
            device: function.id().to_owned(),
            found,
            expected: expected.into(),
        };
        let free = self.slots.get(usize::from(slot)).is_some_and(Option::is_none);
        if !free {
            return Err(refused(format!("PCI slot {slot}"), "a free slot from 0 to 31"));
        }
        for bar in function.bars() {
            let Some(address) = self.room.take(&bar.spec) else {
                let found = format!("a BAR of {:#x} bytes ({:?})", bar.spec.size, bar.spec.kind);
                return Err(refused(found, "one that fits the host bridge's windows"));
            };
            function.write_config(bar.spec.at(), &address.to_le_bytes()[..bar.spec.registers()]);
        }
        self.slots[usize::from(slot)] = Some(function);
        Ok(())
    }

    /// The functions, by slot.
    pub fn functions(&self) -> impl Iterator<Item = &Arc<dyn PciFunction>> {
        self.slots.iter().flatten()
    }

    fn function(&self, slot: u8) -> Option<&Arc<dyn PciFunction>> {
        self.slots.get(usize::from(slot))?.as_ref()
    }

    /// Reads ports; `false` where nothing is.
    pub fn read_ports(&self, port: u16, data: &mut [u8]) -> bool {
        match self.config_port(port, data.len()) {
            Some(ConfigPort::Address) => {
                data.copy_from_slice(&self.address.load(Ordering::Relaxed).to_le_bytes());
                true
            }
            Some(ConfigPort::Data(address)) => self.read_config(address, data),
            None => self.read_bar(Space::Ports, port.into(), data),
        }
    }

    /// Writes ports; `false` where nothing is.
    pub fn write_ports(&self, port: u16, data: &[u8]) -> bool {
        match self.config_port(port, data.len()) {
            Some(ConfigPort::Address) => {
                let address = data.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
                self.address.store(address & ADDRESS_BITS, Ordering::Relaxed);
                true
            }
            Some(ConfigPort::Data(address)) => self.write_config(address, data),
            None => self.write_bar(Space::Ports, port.into(), data),
        }
    }

    /// Reads memory; `false` where nothing is.
    pub fn read_memory(&self, address: u64, data: &mut [u8]) -> bool {
        match ecam(address) {
            Some(address) => self.read_config(address, data),
            None => self.read_bar(Space::Memory, address, data),
        }
    }

    /// Writes memory; `false` where nothing is.
    pub fn write_memory(&self, address: u64, data: &[u8]) -> bool {
        match ecam(address) {
            Some(address) => self.write_config(address, data),
            None => self.write_bar(Space::Memory, address, data),
        }
    }

    /// What an access to a port says about configuration space.
    fn config_port(&self, port: u16, length: usize) -> Option<ConfigPort> {
        if port == PCI_ADDRESS_PORT && length == 4 {
            return Some(ConfigPort::Address);
        }
        let byte = port.checked_sub(PCI_DATA_PORT).filter(|byte| usize::from(*byte) + length <= 4)?;
        let address = self.address.load(Ordering::Relaxed);
        if address & ADDRESS_ENABLE == 0 {
            return None;
        }
        // The same as an ECAM address, with registers of 256 bytes.
        let (function, register) = (u64::from(address >> 8 & 0xffff), u64::from(address & 0xfc));
        Some(ConfigPort::Data(function * CONFIG + register + u64::from(byte)))
    }

    fn read_config(&self, address: u64, data: &mut [u8]) -> bool {
        let Some((slot, offset)) = config_address(address, data.len()) else { return false };
        let Some(function) = self.function(slot) else { return false };
        function.read_config(offset, data);
        true
    }

    fn write_config(&self, address: u64, data: &[u8]) -> bool {
        let Some((slot, offset)) = config_address(address, data.len()) else { return false };
        let Some(function) = self.function(slot) else { return false };
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        function.write_config(offset, data);
        if offset < HEADER {
            self.follow(slot, &**function);
        }
        true
    }

    /// Lets the BARs of a function decode where its registers say now.
    fn follow(&self, slot: u8, function: &dyn PciFunction) {
        let wanted = |bar: &Bar| (bar.enabled && self.windows.hold(bar)).then_some(bar.address);
        let bars = function.bars();
        for bar in &bars {
            let place = self.ranges().place(slot, &bar.spec);
            if place.is_some() && place != wanted(bar) {
                self.ranges_mut().remove(slot, &bar.spec);
                function.place_bar(bar.spec.index, None);
            }
        }
        for bar in &bars {
            let Some(address) = wanted(bar) else { continue };
            if self.ranges().place(slot, &bar.spec).is_some() {
                continue;
            }
            if self.ranges_mut().insert(slot, &bar.spec, address) {
                function.place_bar(bar.spec.index, Some(address));
            } else {
                tracing::debug!("{}: another BAR decodes at {address:#x}", function.id());
            }
        }
    }

    fn hit(&self, space: Space, address: u64, length: usize) -> Option<(&dyn PciFunction, Hit)> {
        let hit = self.ranges().find(space, address, length)?;
        Some((&**self.function(hit.slot)?, hit))
    }

    fn read_bar(&self, space: Space, address: u64, data: &mut [u8]) -> bool {
        let Some((function, hit)) = self.hit(space, address, data.len()) else { return false };
        function.read_bar(hit.bar, hit.offset, data);
        true
    }

    fn write_bar(&self, space: Space, address: u64, data: &[u8]) -> bool {
        let Some((function, hit)) = self.hit(space, address, data.len()) else { return false };
        function.write_bar(hit.bar, hit.offset, data);
        true
    }

    fn ranges(&self) -> RwLockReadGuard<'_, Ranges> {
        self.ranges.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn ranges_mut(&self) -> RwLockWriteGuard<'_, Ranges> {
        self.ranges.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a BAR decode where the saved state says that it did.
    fn place(&self, range: PciRangeState) -> Result<(), DeviceError> {
        let PciRangeState { slot, bar: index, address } = range;
        let refused = |found: &str, expected: &str| DeviceError::State {
            device: self.function(slot).map_or(ID, |function| function.id()).to_owned(),
            found: format!("BAR {index} of PCI slot {slot} decodes at {address:#x}, {found}"),
            expected: expected.into(),
        };
        let function = self.function(slot).ok_or_else(|| refused("where no function is", "a function"))?;
        let bars = function.bars();
        let bar = bars
            .iter()
            .find(|bar| bar.spec.index == usize::from(index))
            .ok_or_else(|| refused("which it does not have", "a BAR that it has"))?;
        if !bar.enabled || bar.address != address {
            return Err(refused("which its registers do not say", "the address that they hold, enabled"));
        }
        if !self.windows.hold(bar) {
            return Err(refused("outside the host bridge's windows", "an address inside"));
        }
        if self.ranges().place(slot, &bar.spec).is_some() {
            return Err(refused("a second time", "one address for each BAR"));
        }
        if !self.ranges_mut().insert(slot, &bar.spec, address) {
            return Err(refused("where another BAR does", "BARs that do not overlap"));
        }
        function.place_bar(bar.spec.index, Some(address));
        Ok(())
    }
}

/// What a configuration port is for.
enum ConfigPort {
    Address,
    Data(u64),
}

/// The offset in the ECAM of a guest address.
fn ecam(address: u64) -> Option<u64> {
    address.checked_sub(PCI_ECAM_START).filter(|offset| *offset < PCI_ECAM_SIZE)
}

/// Slot and register of an offset in the ECAM; none where no function can be.
fn config_address(address: u64, length: usize) -> Option<(u8, usize)> {
    let (function, offset) = (address / CONFIG, address % CONFIG);
    let slot = u8::try_from(function / 8).ok().filter(|slot| *slot < SLOTS)?;
    let whole = function.is_multiple_of(8) && offset + length as u64 <= CONFIG;
    whole.then_some((slot, offset as usize))
}

/// The bus as a device: loaded after its functions, whose BARs it puts where they were.
impl Device for PciBus {
    fn id(&self) -> &str {
        ID
    }

    fn save(&self, out: &mut StateWriter) -> Result<(), DeviceError> {
        let range = |(address, at): (u64, super::ranges::Decoded)| PciRangeState {
            slot: at.slot,
            bar: at.bar as u8,
            address,
        };
        let ranges = self.ranges().iter().map(range).collect();
        Ok(out.put(0, &PciBusState { address: self.address.load(Ordering::Relaxed), ranges })?)
    }

    /// State of builds that had no PCI has nothing of it.
    fn load(&self, state: &mut StateReader) -> Result<(), DeviceError> {
        let Some(PciBusState { address, ranges }) = state.take_optional(0)? else { return Ok(()) };
        if address & !ADDRESS_BITS != 0 {
            let (found, expected) =
                (format!("address port {address:#x}"), format!("{ADDRESS_BITS:#x} at most"));
            return Err(DeviceError::impossible(ID)((found, expected)));
        }
        self.address.store(address, Ordering::Relaxed);
        ranges.into_iter().try_for_each(|range| self.place(range))
    }
}
