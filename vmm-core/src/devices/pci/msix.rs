//! The MSI-X table and its pending bits (PCI Local Bus 3.0, 6.8.2).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::config_space::ConfigSpace;
use super::msi::{MsiMessage, MsiVector, MsiVectors};
use super::state::{MsixEntry, MsixState};
use crate::devices::DeviceError;

/// The capability's id.
const CAPABILITY: u8 = 0x11;
/// Message control: MSI-X is on.
const ENABLE: u16 = 1 << 15;
/// Message control: all vectors are masked.
const FUNCTION_MASK: u16 = 1 << 14;
/// Vector control: this one is.
const MASKED: u32 = 1;
/// Bytes of a table entry.
const ENTRY: usize = 16;

/// The vectors of a function.
pub struct Msix {
    vectors: Vec<Arc<dyn MsiVector>>,
    inner: Mutex<Inner>,
}

struct Inner {
    control: u16,
    table: Vec<MsixEntry>,
    /// Signals stay where they are.
    held: bool,
}

impl Inner {
    /// What a vector sends now.
    fn message(&self, vector: usize) -> Option<MsiMessage> {
        let entry = self.table.get(vector)?;
        let on = self.control & (ENABLE | FUNCTION_MASK) == ENABLE && entry.control & MASKED == 0;
        on.then_some(MsiMessage { address: entry.address, data: entry.data })
    }
}

impl Msix {
    /// A table of `count` masked vectors, at most 2048.
    pub fn new(count: u16, source: &dyn MsiVectors) -> Result<Self, DeviceError> {
        let vectors = (0..count).map(|_| source.vector()).collect::<Result<_, _>>()?;
        Ok(Self::of(vectors))
    }

    /// A table of these vectors, masked.
    pub fn of(vectors: Vec<Arc<dyn MsiVector>>) -> Self {
        let table = vec![MsixEntry { address: 0, data: 0, control: MASKED }; vectors.len()];
        Self { vectors, inner: Mutex::new(Inner { control: 0, table, held: false }) }
    }

    /// Keeps signals where they are, whatever the guest's table says, or ends that.
    pub fn hold(&self, held: bool) {
        let mut inner = self.lock();
        inner.held = held;
        (0..self.vectors.len()).for_each(|vector| self.route(&inner, vector));
    }

    /// The vectors that the guest lets through.
    pub fn active(&self) -> Vec<u16> {
        let inner = self.lock();
        (0..self.count()).filter(|vector| inner.message((*vector).into()).is_some()).collect()
    }

    /// Adds its capability, with the table and the pending bits at these offsets (multiples of 8) of a BAR, and gives the
    /// capability's offset.
    pub fn add_capability(&self, config: &mut ConfigSpace, bar: u32, table: u32, pending: u32) -> usize {
        let last = (self.vectors.len() as u16).saturating_sub(1);
        let body =
            [&last.to_le_bytes()[..], &(table | bar).to_le_bytes(), &(pending | bar).to_le_bytes()].concat();
        config.add_capability(CAPABILITY, &body, &(ENABLE | FUNCTION_MASK).to_le_bytes())
    }

    /// Bytes of the table.
    pub fn table_size(&self) -> u64 {
        (self.vectors.len() * ENTRY) as u64
    }

    /// Takes note of what the configuration space says since it was written, or loaded.
    pub fn follow(&self, config: &ConfigSpace, capability: usize) {
        let mut inner = self.lock();
        let control = config.word(capability + 2) & (ENABLE | FUNCTION_MASK);
        if inner.control != control {
            inner.control = control;
            (0..self.vectors.len()).for_each(|vector| self.route(&inner, vector));
        }
    }

    /// Whether the guest uses MSI-X, so that INTx is silent.
    pub fn enabled(&self) -> bool {
        self.lock().control & ENABLE != 0
    }

    /// Raises a vector, or makes it pending. One that does not exist is nothing.
    pub fn signal(&self, vector: u16) {
        if let Some(vector) = self.vectors.get(usize::from(vector))
            && let Err(error) = vector.eventfd().write(1)
        {
            tracing::error!("signalling an interrupt: {error}");
        }
    }

    /// What raises a vector, for those who do it from the kernel.
    pub fn vector(&self, vector: u16) -> Option<&Arc<dyn MsiVector>> {
        self.vectors.get(usize::from(vector))
    }

    /// How many vectors there are.
    pub fn count(&self) -> u16 {
        self.vectors.len() as u16
    }

    /// Reads the table.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        let inner = self.lock();
        for (at, byte) in (offset as usize..).zip(data) {
            *byte = inner.table.get(at / ENTRY).map_or(0, |entry| bytes(entry)[at % ENTRY]);
        }
    }

    /// Writes the table; each entry written takes effect at once.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        let mut inner = self.lock();
        let (from, end) = (offset as usize, offset as usize + data.len());
        for vector in from / ENTRY..end.div_ceil(ENTRY) {
            let Some(entry) = inner.table.get_mut(vector) else { return };
            let mut image = bytes(entry);
            for (at, byte) in image.iter_mut().enumerate() {
                if let Some(value) = (vector * ENTRY + at).checked_sub(from).and_then(|at| data.get(at)) {
                    *byte = *value;
                }
            }
            *entry = entry_of(image);
            self.route(&inner, vector);
        }
    }

    /// Reads the pending bits.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset as usize..).zip(data) {
            let bits = self.vectors.iter().skip(at * 8).take(8).enumerate();
            *byte = bits.fold(0, |byte, (bit, vector)| byte | u8::from(vector.pending()) << bit);
        }
    }

    fn route(&self, inner: &Inner, vector: usize) {
        let Some(wire) = self.vectors.get(vector) else { return };
        let message = inner.message(vector);
        if inner.held { wire.hold(message) } else { wire.route(message) }
    }

    /// Its wire form.
    pub fn state(&self) -> MsixState {
        let table = self.lock().table.clone();
        let pending = self.vectors.iter().map(|vector| vector.pending()).collect();
        MsixState { table, pending }
    }

    /// Takes table and pending bits from the wire, before [`Self::follow`] brings them to life; an error says what in them
    /// is not possible, and what would be.
    pub fn load(&self, state: MsixState) -> Result<(), (String, String)> {
        let (count, found) = (self.vectors.len(), (state.table.len(), state.pending.len()));
        if found != (count, count) {
            return Err((
                format!("{} MSI-X vectors with {} pending bits", found.0, found.1),
                format!("{count} of both"),
            ));
        }
        if let Some(at) = state.table.iter().position(|entry| entry.control & !MASKED != 0) {
            let found = format!("control {:#x} of MSI-X vector {at}", state.table[at].control);
            return Err((found, "0 or 1".into()));
        }
        let mut inner = self.lock();
        (inner.control, inner.table) = (0, state.table);
        for vector in (0..count).filter(|vector| state.pending[*vector]) {
            self.signal(vector as u16);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bytes(entry: &MsixEntry) -> [u8; ENTRY] {
    (u128::from(entry.address) | u128::from(entry.data) << 64 | u128::from(entry.control) << 96).to_le_bytes()
}

fn entry_of(image: [u8; ENTRY]) -> MsixEntry {
    let image = u128::from_le_bytes(image);
    MsixEntry {
        address: image as u64 & !3,
        data: (image >> 64) as u32,
        control: (image >> 96) as u32 & MASKED,
    }
}
