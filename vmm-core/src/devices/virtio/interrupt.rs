//! The way from a device to its driver: a vector of its own for each queue, or INTx and the ISR register.

use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::devices::pci::msi::MsiVector;
use crate::devices::pci::{Intx, Msix};

/// The vector that is none (virtio 1.2, 4.1.5.1.2).
pub(super) const NO_VECTOR: u16 = 0xffff;
/// ISR: a queue was used.
const ISR_QUEUE: u8 = 1;
/// ISR: the configuration changed.
const ISR_CONFIG: u8 = 2;

/// The interrupts of a device.
pub struct Interrupt {
    msix: Arc<Msix>,
    pin: Mutex<Pin>,
    intx: Intx,
    config: AtomicU16,
    queues: Vec<AtomicU16>,
    needs_reset: AtomicBool,
    rewired: Mutex<Option<Rewired>>,
}

/// Told when [`Interrupt::wire`] may have another answer. Called on a vCPU thread: must not wait.
pub type Rewired = Arc<dyn Fn() + Send + Sync>;

/// What drives INTx.
#[derive(Clone, Copy, Default)]
struct Pin {
    isr: u8,
    disabled: bool,
}

impl Interrupt {
    /// Interrupts of a device after reset.
    pub fn new(queues: usize, msix: Arc<Msix>, intx: Intx) -> Arc<Self> {
        Arc::new(Self {
            msix,
            pin: Mutex::default(),
            intx,
            config: AtomicU16::new(NO_VECTOR),
            queues: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            needs_reset: AtomicBool::new(false),
            rewired: Mutex::default(),
        })
    }

    /// Tells the driver that a queue was used.
    pub fn queue(&self, index: u16) {
        let vector = self.queues.get(usize::from(index)).map_or(NO_VECTOR, |v| v.load(Ordering::Relaxed));
        self.raise(vector, ISR_QUEUE);
    }

    /// What raises a queue's interrupt by itself, for a kernel that gives out the queue's buffers: none while the driver
    /// uses INTx, or has no vector for it.
    pub fn wire(&self, index: u16) -> Option<Arc<dyn MsiVector>> {
        let vector = self.vector(Some(index));
        if self.msix.enabled() { self.msix.vector(vector).cloned() } else { None }
    }

    /// Whom to tell when that changes.
    pub fn on_rewired(&self, tell: Option<Rewired>) {
        *self.rewired.lock().unwrap_or_else(PoisonError::into_inner) = tell;
    }

    fn tell_rewired(&self) {
        if let Some(tell) = &*self.rewired.lock().unwrap_or_else(PoisonError::into_inner) {
            tell();
        }
    }

    /// Tells the driver that the device's configuration changed.
    pub fn config_changed(&self) {
        self.raise(self.config.load(Ordering::Relaxed), ISR_CONFIG);
    }

    /// The driver broke the rules, or the device cannot go on: it stands still until it is reset.
    pub fn needs_reset(&self) {
        if !self.needs_reset.swap(true, Ordering::SeqCst) {
            self.config_changed();
        }
    }

    fn raise(&self, vector: u16, isr: u8) {
        if self.msix.enabled() {
            self.msix.signal(vector);
        } else {
            let mut pin = self.pin();
            pin.isr |= isr;
            self.drive(*pin);
        }
    }

    fn pin(&self) -> MutexGuard<'_, Pin> {
        self.pin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drive(&self, pin: Pin) {
        self.intx.set(pin.isr != 0 && !pin.disabled && !self.msix.enabled());
    }

    /// The ISR register, without clearing it.
    pub(super) fn isr(&self) -> u8 {
        self.pin().isr
    }

    /// Reads the ISR register, which clears it and ends INTx.
    pub(super) fn take_isr(&self) -> u8 {
        let mut pin = self.pin();
        let isr = std::mem::take(&mut pin.isr);
        self.drive(*pin);
        isr
    }

    /// Drives INTx anew: the guest may have switched it, or MSI-X, on or off.
    pub(super) fn follow(&self, intx_disabled: bool) {
        let mut pin = self.pin();
        pin.disabled = intx_disabled;
        self.drive(*pin);
        drop(pin);
        self.tell_rewired();
    }

    /// Which vector is whose: `None` for the configuration's. One that does not exist becomes none.
    pub(super) fn set_vector(&self, queue: Option<u16>, vector: u16) {
        let vector = if vector < self.msix.count() { vector } else { NO_VECTOR };
        if let Some(of) = self.vector_of(queue) {
            of.store(vector, Ordering::Relaxed);
            self.tell_rewired();
        }
    }

    pub(super) fn vector(&self, queue: Option<u16>) -> u16 {
        self.vector_of(queue).map_or(NO_VECTOR, |vector| vector.load(Ordering::Relaxed))
    }

    fn vector_of(&self, queue: Option<u16>) -> Option<&AtomicU16> {
        queue.map_or(Some(&self.config), |queue| self.queues.get(usize::from(queue)))
    }

    pub(super) fn is_reset_needed(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// As after a reset; vectors are lost too.
    pub(super) fn reset(&self) {
        self.set_vector(None, NO_VECTOR);
        (0..self.queues.len() as u16).for_each(|queue| self.set_vector(Some(queue), NO_VECTOR));
        self.needs_reset.store(false, Ordering::SeqCst);
        self.take_isr();
    }

    pub(super) fn load(&self, isr: u8, needs_reset: bool) {
        self.needs_reset.store(needs_reset, Ordering::SeqCst);
        let mut pin = self.pin();
        pin.isr = isr & (ISR_QUEUE | ISR_CONFIG);
        self.drive(*pin);
    }
}
