//! The common configuration (virtio 1.2, 4.1.4.3).

use super::state::{VirtioQueueState, VirtioState};

/// Bytes of it.
pub(super) const SIZE: u64 = 0x40;

/// Device status.
pub(super) const ACKNOWLEDGE: u8 = 1;
pub(super) const DRIVER: u8 = 2;
pub(super) const DRIVER_OK: u8 = 4;
pub(super) const FEATURES_OK: u8 = 8;
pub(super) const NEEDS_RESET: u8 = 0x40;
pub(super) const FAILED: u8 = 0x80;

/// Features of ring and transport.
const INDIRECT_DESC: u64 = 1 << 28;
pub(super) const EVENT_IDX: u64 = 1 << 29;
pub(super) const VERSION_1: u64 = 1 << 32;
const RING_RESET: u64 = 1 << 40;
/// Those that every device offers.
pub(super) const TRANSPORT_FEATURES: u64 = INDIRECT_DESC | EVENT_IDX | VERSION_1 | RING_RESET;

/// The registers, but for the vectors, which are the interrupt's.
#[derive(Debug, Clone)]
pub(super) struct Registers {
    pub offered: u64,
    pub device_feature_select: u32,
    pub driver_feature_select: u32,
    pub features: u64,
    pub status: u8,
    pub queue_select: u16,
    pub queues: Vec<QueueRegisters>,
}

/// A queue's registers, and how far the device has come in its rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueueRegisters {
    pub max_size: u16,
    pub size: u16,
    pub enabled: bool,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    pub next_available: u16,
    pub next_used: u16,
}

impl QueueRegisters {
    fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            enabled: false,
            descriptors: 0,
            available: 0,
            used: 0,
            next_available: 0,
            next_used: 0,
        }
    }

    /// As after a reset.
    pub fn reset(&mut self) {
        *self = Self::new(self.max_size);
    }
}

/// What a write asks for beyond a change of registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// The status register was written.
    Status(u8),
    /// A vector was: of a queue, or of the configuration.
    Vector(Option<u16>, u16),
    /// The selected queue is to be enabled.
    Enable(u16),
    /// The selected queue is to be reset.
    ResetQueue(u16),
}

impl Registers {
    pub fn new(features: u64, sizes: &[u16]) -> Self {
        Self {
            offered: features | TRANSPORT_FEATURES,
            device_feature_select: 0,
            driver_feature_select: 0,
            features: 0,
            status: 0,
            queue_select: 0,
            queues: sizes.iter().map(|size| QueueRegisters::new(*size)).collect(),
        }
    }

    /// As after a reset.
    pub fn reset(&mut self) {
        (self.device_feature_select, self.driver_feature_select, self.queue_select) = (0, 0, 0);
        (self.features, self.status) = (0, 0);
        self.queues.iter_mut().for_each(QueueRegisters::reset);
    }

    fn selected(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::from(self.queue_select))
    }

    /// Reads bytes from `offset`, with what `vector` and `needs_reset` know.
    pub fn read(&self, offset: u64, data: &mut [u8], vector: impl Fn(Option<u16>) -> u16, needs_reset: bool) {
        let half = |value: u64, select: u32| if select < 2 { (value >> (32 * select)) as u32 } else { 0 };
        let mut image = [0; SIZE as usize];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.device_feature_select.to_le_bytes());
        put(4, &half(self.offered, self.device_feature_select).to_le_bytes());
        put(8, &self.driver_feature_select.to_le_bytes());
        put(12, &half(self.features, self.driver_feature_select).to_le_bytes());
        put(16, &vector(None).to_le_bytes());
        put(18, &(self.queues.len() as u16).to_le_bytes());
        put(20, &[self.status | if needs_reset { NEEDS_RESET } else { 0 }]);
        put(22, &self.queue_select.to_le_bytes());
        // A queue that does not exist has size 0.
        if let Some(queue) = self.selected() {
            put(24, &queue.size.to_le_bytes());
            put(26, &vector(Some(self.queue_select)).to_le_bytes());
            put(28, &u16::from(queue.enabled).to_le_bytes());
            put(30, &self.queue_select.to_le_bytes());
            put(32, &queue.descriptors.to_le_bytes());
            put(40, &queue.available.to_le_bytes());
            put(48, &queue.used.to_le_bytes());
            put(56, &self.queue_select.to_le_bytes());
        }
        for (byte, at) in data.iter_mut().zip(offset as usize..) {
            *byte = image.get(at).copied().unwrap_or(0);
        }
    }

    /// Writes a field, or half of one of 64 bits. Anything else is not a register, and ignored.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Option<Request> {
        let value = data.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        let index = self.queue_select;
        match (offset, data.len()) {
            (0, 4) => self.device_feature_select = value as u32,
            (8, 4) => self.driver_feature_select = value as u32,
            (12, 4) if self.status & FEATURES_OK == 0 && self.driver_feature_select < 2 => {
                merge(&mut self.features, value, self.driver_feature_select == 1);
            }
            (16, 2) => return Some(Request::Vector(None, value as u16)),
            (20, 1) => return Some(Request::Status(value as u8)),
            (22, 2) => self.queue_select = value as u16,
            _ => {}
        }
        let queue = self.queues.get_mut(usize::from(index))?;
        match (offset, data.len()) {
            (26, 2) => return Some(Request::Vector(Some(index), value as u16)),
            (28, 2) if value == 1 && !queue.enabled => return Some(Request::Enable(index)),
            (58, 2) if value == 1 && self.features & RING_RESET != 0 => {
                return Some(Request::ResetQueue(index));
            }
            // A queue that is enabled keeps what it was enabled with.
            _ if queue.enabled => {}
            (24, 2) => {
                let size = value as u16;
                if size.is_power_of_two() && size <= queue.max_size {
                    queue.size = size;
                }
            }
            (32..56, 4 | 8) if offset.is_multiple_of(data.len() as u64) => {
                let address = match offset / 8 {
                    4 => &mut queue.descriptors,
                    5 => &mut queue.available,
                    _ => &mut queue.used,
                };
                if data.len() == 8 {
                    *address = value;
                } else {
                    merge(address, value, !offset.is_multiple_of(8));
                }
            }
            _ => {}
        }
        None
    }

    /// Takes in the status that the driver wrote (not 0). `true` when that made it ready.
    pub fn set_status(&mut self, value: u8) -> bool {
        let mut new = value & (ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED) | self.status;
        let unknown = self.features & !self.offered;
        if new & FEATURES_OK != 0 && (unknown != 0 || self.features & VERSION_1 == 0) {
            new &= !FEATURES_OK;
        }
        if new & FEATURES_OK == 0 {
            new &= !DRIVER_OK;
        }
        let started = (new & !self.status) & DRIVER_OK != 0;
        self.status = new;
        started
    }

    pub fn state(&self) -> VirtioState {
        let queue = |(queue, index): (&QueueRegisters, u16)| VirtioQueueState {
            size: queue.size,
            enabled: queue.enabled,
            vector: index,
            descriptors: queue.descriptors,
            available: queue.available,
            used: queue.used,
            next_available: queue.next_available,
            next_used: queue.next_used,
        };
        VirtioState {
            offered: self.offered,
            device_feature_select: self.device_feature_select,
            driver_feature_select: self.driver_feature_select,
            features: self.features,
            status: self.status,
            needs_reset: false,
            isr: 0,
            config_vector: 0,
            queue_select: self.queue_select,
            queues: self.queues.iter().zip(0..).map(queue).collect(),
        }
    }

    /// Takes registers from the wire; an error says what in them is not possible, and what would be.
    pub fn load(&mut self, state: &VirtioState) -> Result<(), (String, String)> {
        let lacks = state.offered & !self.offered;
        if lacks != 0 {
            return Err((
                format!("features {:#x} offered", state.offered),
                format!("features of this build: {:#x}", self.offered),
            ));
        }
        let known = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;
        let order = state.status & DRIVER_OK == 0 || state.status & FEATURES_OK != 0;
        if state.status & !known != 0 || !order {
            let expected = "status bits that a driver sets, DRIVER_OK after FEATURES_OK";
            return Err((format!("device status {:#04x}", state.status), expected.into()));
        }
        let agreed = state.features & !state.offered == 0 && state.features & VERSION_1 != 0;
        if state.status & FEATURES_OK != 0 && !agreed {
            let expected = format!("VERSION_1 and only what was offered: {:#x}", state.offered);
            return Err((format!("features {:#x} agreed on", state.features), expected));
        }
        if state.queues.len() != self.queues.len() {
            return Err((format!("{} queues", state.queues.len()), self.queues.len().to_string()));
        }
        for ((queue, saved), index) in self.queues.iter_mut().zip(&state.queues).zip(0..) {
            queue.load(index, saved)?;
        }
        self.offered = state.offered;
        self.device_feature_select = state.device_feature_select;
        self.driver_feature_select = state.driver_feature_select;
        self.features = state.features;
        self.status = state.status;
        self.queue_select = state.queue_select;
        Ok(())
    }
}

impl QueueRegisters {
    fn load(&mut self, index: usize, saved: &VirtioQueueState) -> Result<(), (String, String)> {
        if !saved.size.is_power_of_two() || saved.size > self.max_size {
            return Err((
                format!("queue {index} of size {}", saved.size),
                format!("a power of two up to {}", self.max_size),
            ));
        }
        *self = Self {
            max_size: self.max_size,
            size: saved.size,
            enabled: saved.enabled,
            descriptors: saved.descriptors,
            available: saved.available,
            used: saved.used,
            next_available: saved.next_available,
            next_used: saved.next_used,
        };
        Ok(())
    }
}

fn merge(value: &mut u64, half: u64, high: bool) {
    let half = half & u64::from(u32::MAX);
    *value =
        if high { *value & u64::from(u32::MAX) | half << 32 } else { *value & !u64::from(u32::MAX) | half };
}
