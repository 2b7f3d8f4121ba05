//! A device's interrupts on their way to the guest: from VFIO by eventfds to KVM, without this process.
//!
//! 1. The kernel sends one kind at a time, the one that the guest has switched on: MSI-X, MSI, or else INTx.
//! 2. Held, they gather in their eventfds: KVM does not listen, VFIO goes on. So they are over a handover.
//! 3. INTx is masked by VFIO when it is signalled, and let through again when the guest has dealt with it. Whether it had when
//!    the line was let go of is not known afterwards, so it is let through once more: a device that still asks does so again.

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::handle::{Handle, IrqKind};
use super::ioctls::IrqAction;
use super::registers::{Capability, MSI_64_BIT, MSI_ENABLE, Registers};
use super::state::{Armed, VfioState};
use super::wires::{Levels, VfioWires};
use crate::cpr::fds::{FdError, FdName, FdTable};
use crate::devices::eventfd::borrow;
use crate::devices::pci::Msix;
use crate::devices::pci::msi::{MsiMessage, MsiVector};
use crate::devices::{DeviceError, eventfd};

/// What an eventfd is a link to in /proc.
const EVENTFD: &str = "anon_inode:[eventfd]";

/// The INTx pin.
struct Pin {
    gsi: u32,
    signal: EventFd,
    dealt: EventFd,
    levels: Arc<dyn Levels>,
}

/// All interrupts of a device.
pub(super) struct Interrupts {
    pub(super) msix: Option<Msix>,
    msi: Vec<Arc<dyn MsiVector>>,
    pin: Option<Pin>,
    /// Vectors of MSI-X can be added while it is on.
    grows: bool,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    armed: Armed,
    /// Vectors that VFIO signals.
    wired: BTreeSet<u16>,
    held: bool,
    /// The device does not let its INTx through by an eventfd, as mediated ones do not: it is left off.
    mute: bool,
    /// What the kernel was told is not known yet: nothing is told it.
    unknown: bool,
}

impl Interrupts {
    /// Those of a device: on new eventfds, or on those that were handed over.
    pub(super) fn new(
        handle: &Handle,
        registers: &Registers,
        gsi: u32,
        wires: &VfioWires,
        mut kept: Option<&mut FdTable>,
    ) -> Result<Self, DeviceError> {
        let id = handle.id();
        let mut eventfd = |what: &str, index: u32| match &mut kept {
            Some(fds) => adopt(fds, name(id, what, index)),
            None => eventfd::make(id),
        };
        let mut vectors = |what: &str, count: u32| -> Result<Vec<_>, DeviceError> {
            (0..count).map(|index| wires.msi.vector_on(eventfd(what, index)?)).collect()
        };
        // A mediated device is not asked for a kind that it does not know.
        let ask = |kind, has| if has { handle.interrupts(kind) } else { Ok((0, false)) };
        let (on_table, grows) = ask(IrqKind::Msix, registers.msix.is_some())?;
        let table = registers.msix.map(|msix| on_table.min(msix.count.into()));
        let msix = table.map(|count| vectors("msix", count)).transpose()?.map(Msix::of);
        let (count, _) = ask(IrqKind::Msi, registers.msi.is_some())?;
        let msi = vectors("msi", count)?;
        let (lines, _) = ask(IrqKind::Intx, registers.has_pin)?;
        let pin = if lines > 0 {
            let (signal, dealt) = (eventfd("intx", 0)?, eventfd("intx-unmask", 0)?);
            Some(Pin { gsi, signal, dealt, levels: Arc::clone(&wires.levels) })
        } else {
            None
        };
        let inner = Inner { unknown: kept.is_some(), ..Inner::default() };
        Ok(Self { msix, msi, pin, grows, inner: Mutex::new(inner) })
    }

    /// Registers (duplicates of) the eventfds.
    pub(super) fn register(&self, id: &str, fds: &mut FdTable) -> Result<(), DeviceError> {
        let mut put =
            |what: &str, index, eventfd: &EventFd| fds.insert_dup(name(id, what, index), borrow(eventfd));
        for (index, vector) in (0..).zip(self.table()) {
            put("msix", index, vector.eventfd())?;
        }
        for (index, vector) in (0..).zip(&self.msi) {
            put("msi", index, vector.eventfd())?;
        }
        if let Some(pin) = &self.pin {
            put("intx", 0, &pin.signal)?;
            put("intx-unmask", 0, &pin.dealt)?;
        }
        Ok(())
    }

    fn table(&self) -> impl Iterator<Item = &Arc<dyn MsiVector>> {
        self.msix.iter().flat_map(|msix| (0..msix.count()).filter_map(|vector| msix.vector(vector)))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what the guest's registers, and its table, say since they were written.
    pub(super) fn follow(&self, handle: &Handle, registers: &Registers) {
        let mut inner = self.lock();
        if inner.unknown {
            return;
        }
        if let (Some(msix), Some(capability)) = (&self.msix, &registers.msix) {
            msix.follow(&registers.space, capability.at);
        }
        let messages = registers.msi.and_then(|msi| messages(registers, &msi, self.msi.len()));
        let wanted = if self.msix.as_ref().is_some_and(Msix::enabled) {
            Armed::Msix
        } else if messages.is_some() {
            Armed::Msi
        } else if self.pin.is_some() && !inner.mute {
            Armed::Intx
        } else {
            Armed::None
        };
        let done = if wanted == inner.armed {
            self.grow(&mut inner, handle)
        } else {
            let count = messages.as_ref().map_or(0, Vec::len);
            self.disarm(&mut inner, handle).and_then(|()| self.arm(&mut inner, handle, wanted, count))
        };
        if let Err(error) = done {
            tracing::error!("{}: setting up its interrupts ({wanted:?}): {error}", handle.id());
            inner.mute |= wanted == Armed::Intx && error.raw_os_error() == Some(libc::ENOTTY);
        }
        self.route_msi(&inner, &messages.unwrap_or_default());
    }

    fn route_msi(&self, inner: &Inner, messages: &[MsiMessage]) {
        for (index, vector) in self.msi.iter().enumerate() {
            let message = messages.get(index).copied().filter(|_| inner.armed == Armed::Msi);
            if inner.held { vector.hold(message) } else { vector.route(message) }
        }
    }

    fn disarm(&self, inner: &mut Inner, handle: &Handle) -> std::io::Result<()> {
        let was = std::mem::take(&mut inner.armed);
        inner.wired.clear();
        let detached = match self.pin.as_ref().filter(|_| was == Armed::Intx && !inner.held) {
            Some(pin) => pin.levels.detach(pin.gsi, &pin.signal),
            None => Ok(()),
        };
        // Whatever came of that: VFIO takes no other kind before.
        off(handle, was).and(detached)
    }

    /// Switches a kind on, or leaves all off.
    fn arm(&self, inner: &mut Inner, handle: &Handle, wanted: Armed, messages: usize) -> std::io::Result<()> {
        let armed = self.switch_on(inner, handle, wanted, messages);
        if armed.is_ok() {
            inner.armed = wanted;
        } else {
            inner.wired.clear();
            // It may not have been on: the error before tells more.
            let _ = off(handle, wanted);
        }
        armed
    }

    fn switch_on(
        &self,
        inner: &mut Inner,
        handle: &Handle,
        wanted: Armed,
        messages: usize,
    ) -> std::io::Result<()> {
        match wanted {
            Armed::None => {}
            Armed::Msix => self.arm_table(inner, handle)?,
            Armed::Msi => {
                let fds: Vec<_> = self.msi.iter().map(|vector| Some(borrow(vector.eventfd()))).collect();
                let fds = &fds[..messages.min(fds.len())];
                handle.irqs(IrqKind::Msi, IrqAction::Signal(0, fds))?;
                inner.wired.extend(0..fds.len() as u16);
            }
            Armed::Intx => {
                let Some(pin) = &self.pin else { return Ok(()) };
                handle.irqs(IrqKind::Intx, IrqAction::Signal(0, &[Some(borrow(&pin.signal))]))?;
                handle.irqs(IrqKind::Intx, IrqAction::UnmaskBy(borrow(&pin.dealt)))?;
                if !inner.held {
                    pin.levels.attach(pin.gsi, &pin.signal, &pin.dealt)?;
                }
            }
        }
        Ok(())
    }

    /// Switches MSI-X on with the vectors that the guest lets through: one at least, and room for all of them where they cannot
    /// be added later.
    fn arm_table(&self, inner: &mut Inner, handle: &Handle) -> std::io::Result<()> {
        let Some(msix) = &self.msix else { return Ok(()) };
        let mut wired: BTreeSet<u16> = msix.active().into_iter().collect();
        if wired.is_empty() {
            wired.insert(0);
        }
        let last = if self.grows { wired.last().map_or(1, |last| last + 1) } else { msix.count() };
        let eventfd = |vector| {
            let there = wired.contains(&vector).then(|| msix.vector(vector)).flatten();
            there.map(|vector| borrow(vector.eventfd()))
        };
        let fds: Vec<_> = (0..last).map(eventfd).collect();
        handle.irqs(IrqKind::Msix, IrqAction::Signal(0, &fds))?;
        inner.wired = wired;
        Ok(())
    }

    /// Adds vectors of MSI-X that the guest lets through by now.
    fn grow(&self, inner: &mut Inner, handle: &Handle) -> std::io::Result<()> {
        let Some(msix) = self.msix.as_ref().filter(|_| inner.armed == Armed::Msix) else { return Ok(()) };
        for vector in msix.active() {
            if inner.wired.contains(&vector) {
                continue;
            }
            let Some(wire) = msix.vector(vector) else { continue };
            let fds = [Some(borrow(wire.eventfd()))];
            handle.irqs(IrqKind::Msix, IrqAction::Signal(vector.into(), &fds))?;
            inner.wired.insert(vector);
        }
        Ok(())
    }

    /// Keeps interrupts in their eventfds, or ends that.
    pub(super) fn hold(&self, handle: &Handle, registers: &Registers, held: bool) {
        let mut inner = self.lock();
        if inner.held == held {
            return;
        }
        inner.held = held;
        if let Some(msix) = &self.msix {
            msix.hold(held);
        }
        let messages = registers.msi.and_then(|msi| messages(registers, &msi, self.msi.len()));
        self.route_msi(&inner, &messages.unwrap_or_default());
        let Some(pin) = self.pin.as_ref().filter(|_| inner.armed == Armed::Intx) else { return };
        let done = if held {
            pin.levels.detach(pin.gsi, &pin.signal)
        } else {
            pin.levels
                .attach(pin.gsi, &pin.signal, &pin.dealt)
                .and_then(|()| handle.irqs(IrqKind::Intx, IrqAction::Unmask))
        };
        if let Err(error) = done {
            tracing::error!("{}: its INTx: {error}", handle.id());
        }
    }

    /// What the kernel was told.
    pub(super) fn state(&self) -> VfioState {
        let inner = self.lock();
        VfioState { armed: inner.armed, wired: inner.wired.iter().copied().collect() }
    }

    /// Takes what the kernel was told from the wire. They are held until the guest is here. An error says what in it is not
    /// possible, and what would be.
    pub(super) fn load(&self, state: VfioState) -> Result<(), (String, String)> {
        let vectors = match state.armed {
            Armed::Msix => self.msix.as_ref().map_or(0, Msix::count),
            Armed::Msi => self.msi.len() as u16,
            Armed::Intx | Armed::None => 0,
        };
        if let Some(vector) = state.wired.iter().find(|vector| **vector >= vectors) {
            return Err((
                format!("vector {vector} of {:?} in use", state.armed),
                format!("one below {vectors}"),
            ));
        }
        if state.armed == Armed::Intx && self.pin.is_none() {
            return Err(("INTx in use".into(), "a device that has it".into()));
        }
        let mut inner = self.lock();
        let wired = state.wired.into_iter().collect();
        *inner = Inner { armed: state.armed, wired, held: true, ..Inner::default() };
        if let Some(msix) = &self.msix {
            msix.hold(true);
        }
        Ok(())
    }
}

/// Switches a kind off.
fn off(handle: &Handle, kind: Armed) -> std::io::Result<()> {
    match kind {
        Armed::None => Ok(()),
        Armed::Msix => handle.irqs(IrqKind::Msix, IrqAction::Off),
        Armed::Msi => handle.irqs(IrqKind::Msi, IrqAction::Off),
        Armed::Intx => handle.irqs(IrqKind::Intx, IrqAction::Off),
    }
}

/// What an eventfd of a device is called.
pub(super) fn name(id: &str, what: &str, index: u32) -> FdName {
    FdName::new(format!("{id}.{what}"), index)
}

/// Takes an eventfd that was handed over.
pub(super) fn adopt(fds: &mut FdTable, name: FdName) -> Result<EventFd, DeviceError> {
    let fd = fds.take(&name)?;
    let found = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let found = found.map_or_else(|error| error.to_string(), |found| found.display().to_string());
    if found != EVENTFD {
        return Err(FdError::Wrong { name, found, expected: EVENTFD.into() }.into());
    }
    // SAFETY: it is an eventfd, and nobody else's.
    Ok(unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) })
}

/// What the vectors of MSI send, if it is on.
fn messages(registers: &Registers, msi: &Capability, most: usize) -> Option<Vec<MsiMessage>> {
    let space = &registers.space;
    let control = space.word(msi.at + 2);
    if control & MSI_ENABLE == 0 {
        return None;
    }
    let wide = msi.control & MSI_64_BIT != 0;
    let long = |at| u64::from(space.word(at)) | u64::from(space.word(at + 2)) << 16;
    let high = if wide { long(msi.at + 8) } else { 0 };
    let address = long(msi.at + 4) | high << 32;
    let data = u32::from(space.word(msi.at + if wide { 12 } else { 8 }));
    let count = 1_u32 << (control >> 4 & 7).min(5);
    let message = |vector| MsiMessage { address, data: data & !(count - 1) | vector };
    Some((0..count).take(most).map(message).collect())
}
