//! The device on the bus.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::bars::Windows;
use super::handle::Handle;
use super::interrupts::Interrupts;
use super::notices::Notices;
use super::open::Assigned;
use super::registers::{MsixCapability, Registers};
use super::state::VfioState;
use super::wires::VfioWires;
use crate::cpr::Mode;
use crate::cpr::blockers::Blocker;
use crate::cpr::fds::FdTable;
use crate::cpr::format::{StateReader, StateWriter};
use crate::devices::pci::{Bar, Intx, MsixState, PciConfigState, PciFunction, ROM};
use crate::devices::{Device, DeviceError, Subscriber};
use crate::x86::layout::PCI_INTX_GSI;

/// A PCI function of the host in a slot of the guest's bus.
pub struct VfioPci {
    slot: u8,
    assigned: Assigned,
    msix: Option<MsixCapability>,
    interrupts: Interrupts,
    notices: Arc<Notices>,
    registers: Mutex<Registers>,
    windows: Mutex<Windows>,
    wires: VfioWires,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VfioPci {
    /// A function for a device: as it is after a reset, or as it is if it was handed over. Then its eventfds are in `kept`. What the guest
    /// did with it, and with its registers where a guest that sleeps finds it reset, comes by [`Device::load`].
    pub fn new(
        slot: u8,
        assigned: Assigned,
        wires: VfioWires,
        kept: Option<&mut FdTable>,
    ) -> Result<Self, DeviceError> {
        let handle = &assigned.handle;
        let image =
            handle.image().map_err(DeviceError::io(handle.id(), "reading its configuration space"))?;
        let rom = assigned.rom.as_ref().map_or(0, |rom| rom.size);
        let sizes = std::array::from_fn(|bar| if bar == ROM { rom } else { handle.bar(bar).size });
        let mut registers = Registers::new(image, sizes).map_err(DeviceError::unfit(handle.id()))?;
        let gsi = PCI_INTX_GSI + Intx::line_of(slot, 0) as u32;
        registers.space.set_interrupt_line(gsi as u8);
        let mut kept = kept.filter(|_| assigned.adopted);
        let interrupts = Interrupts::new(handle, &registers, gsi, &wires, kept.as_deref_mut())?;
        let notices = Notices::new(handle, kept, Arc::clone(&wires.tell))?;
        let windows = Windows::new(handle, registers.msix.as_ref(), wires.slots.clone())?;
        if !assigned.adopted {
            let enabled = handle.write_config(4, &registers.command().to_le_bytes());
            enabled.map_err(DeviceError::io(handle.id(), "enabling its memory space"))?;
            interrupts.follow(handle, &registers);
        }
        let function = Self {
            slot,
            msix: registers.msix,
            interrupts,
            notices,
            registers: Mutex::new(registers),
            windows: Mutex::new(windows),
            wires,
            assigned,
        };
        if !function.assigned.adopted {
            function.tell_kvm(true);
        }
        Ok(function)
    }

    fn handle(&self) -> &Handle {
        &self.assigned.handle
    }

    /// KVM knows of the devices of the guests that it runs, and of no others.
    fn tell_kvm(&self, here: bool) {
        let (files, file) = (&self.wires.files, self.assigned.kvm_file());
        let told = if here { files.add(file) } else { files.remove(file) };
        if let Err(error) = told {
            tracing::warn!("{}: telling KVM of it: {error}", self.id());
        }
    }

    /// Where in the table, or in the pending bits, an access goes.
    fn of_msix(&self, bar: usize, offset: u64) -> Option<MsixPart> {
        let msix = self.msix.as_ref()?;
        let within = |(at_bar, start): (usize, u64), size: u64| {
            offset.checked_sub(start).filter(|at| at_bar == bar && *at < size)
        };
        let bits = u64::from(msix.count).div_ceil(64) * 8;
        within(msix.table, u64::from(msix.count) * 16)
            .map(MsixPart::Table)
            .or_else(|| within(msix.pending, bits).map(MsixPart::Pending))
    }
}

/// A part of a BAR that is the machine's own.
enum MsixPart {
    Table(u64),
    Pending(u64),
}

impl PciFunction for VfioPci {
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        lock(&self.registers).read(self.handle(), offset, data);
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        let mut registers = lock(&self.registers);
        registers.write(self.handle(), offset, data);
        self.interrupts.follow(self.handle(), &registers);
    }

    fn bars(&self) -> Vec<Bar> {
        lock(&self.registers).space.bars()
    }

    fn place_bar(&self, bar: usize, at: Option<u64>) {
        lock(&self.windows).place(bar, at);
    }

    fn read_bar(&self, bar: usize, offset: u64, data: &mut [u8]) {
        match (self.of_msix(bar, offset), &self.interrupts.msix) {
            (Some(MsixPart::Table(at)), Some(msix)) => msix.read_table(at, data),
            (Some(MsixPart::Pending(at)), Some(msix)) => msix.read_pending(at, data),
            _ => {
                let read = match &self.assigned.rom {
                    Some(rom) if bar == ROM => rom.read(offset, data),
                    _ => self.handle().read_bar(bar, offset, data),
                };
                if let Err(error) = read {
                    tracing::warn!("{}: reading its BAR {bar} at {offset:#x}: {error}", self.id());
                    data.fill(0xff);
                }
            }
        }
    }

    fn write_bar(&self, bar: usize, offset: u64, data: &[u8]) {
        match (self.of_msix(bar, offset), &self.interrupts.msix) {
            (Some(MsixPart::Table(at)), Some(msix)) => {
                msix.write_table(at, data);
                self.interrupts.follow(self.handle(), &lock(&self.registers));
            }
            (Some(MsixPart::Pending(_)), _) => {}
            _ if bar == ROM => {}
            _ => {
                if let Err(error) = self.handle().write_bar(bar, offset, data) {
                    tracing::warn!("{}: writing its BAR {bar} at {offset:#x}: {error}", self.id());
                }
            }
        }
    }
}

impl Device for VfioPci {
    fn id(&self) -> &str {
        self.assigned.handle.id()
    }

    /// The device goes on; what it signals gathers.
    fn quiesce(&self, _deadline: Instant) -> Result<(), DeviceError> {
        self.interrupts.hold(self.handle(), &lock(&self.registers), true);
        self.notices.hold(true);
        self.tell_kvm(false);
        Ok(())
    }

    fn resume(&self) {
        self.tell_kvm(true);
        self.interrupts.hold(self.handle(), &lock(&self.registers), false);
        self.notices.hold(false);
    }

    fn save(&self, out: &mut StateWriter) -> Result<(), DeviceError> {
        let slot = self.slot.into();
        out.put(slot, &lock(&self.registers).space.state())?;
        if let Some(msix) = &self.interrupts.msix {
            // What is pending is in the eventfds, which go along.
            let MsixState { table, pending } = msix.state();
            out.put(slot, &MsixState { table, pending: vec![false; pending.len()] })?;
        }
        // A device that is opened afresh sends none.
        if out.mode() == Mode::CprReboot {
            return Ok(());
        }
        Ok(out.put(slot, &self.interrupts.state())?)
    }

    fn load(&self, state: &mut StateReader) -> Result<(), DeviceError> {
        let slot = self.slot.into();
        let impossible = DeviceError::impossible(self.id());
        let space: PciConfigState = state.take(slot)?;
        let table = match &self.interrupts.msix {
            Some(msix) => Some((msix, state.take::<MsixState>(slot)?)),
            None => None,
        };
        if self.assigned.adopted {
            let told: VfioState = state.take(slot)?;
            self.interrupts.load(told).map_err(&impossible)?;
        }
        if !self.assigned.adopted && !self.handle().can_reset() {
            let found = "a device of the host's that cannot be reset, and may be at work still".to_owned();
            return Err(DeviceError::unfit(self.id())((found, "one that can be".into())));
        }
        let mut registers = lock(&self.registers);
        registers.space.load(&space).map_err(&impossible)?;
        if let Some((msix, table)) = table {
            msix.load(table).map_err(&impossible)?;
            if let Some(capability) = &self.msix {
                msix.follow(&registers.space, capability.at);
            }
        }
        if !self.assigned.adopted {
            // The guest is not claimed yet, and sleeps: its driver is to have the device reach memory, and nobody before.
            registers.leave_bus();
            let told = self.handle().write_config(4, &registers.command().to_le_bytes());
            told.map_err(DeviceError::io(self.id(), "writing its command register"))?;
            self.interrupts.follow(self.handle(), &registers);
        }
        Ok(())
    }

    fn descriptors(&self, mode: Mode, fds: &mut FdTable) -> Result<(), DeviceError> {
        if mode == Mode::CprReboot {
            return Ok(());
        }
        self.assigned.register(fds)?;
        self.interrupts.register(self.id(), fds)?;
        self.notices.register(fds)
    }

    fn subscriber(&self) -> Option<Subscriber> {
        Some(self.notices.subscriber())
    }

    fn blockers(&self, mode: Mode) -> Vec<Blocker> {
        let why = "the host cannot reset it: it would be at work when it is opened again; hand the guest over by transfer or exec";
        let stays = mode != Mode::CprReboot || self.handle().can_reset();
        (!stays).then(|| Blocker::new(self.id(), why)).into_iter().collect()
    }

    fn blocker_awake(&self) -> Option<Blocker> {
        let why = "an assigned device ends with its last process, and the guest is awake: suspend it, so that its drivers start the device \
                   again (cpr-save reboot --suspend, or ACPI S3 by the guest itself), hand it over by transfer or exec, or take the \
                   device away from it first";
        Some(Blocker::new(self.id(), why))
    }
}
