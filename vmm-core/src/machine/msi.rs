//! Message-signalled interrupts and doorbells by KVM: irqfds with routes of their own, and ioeventfds.
//!
//! 1. Setting a route replaces the whole table: the pins of the interrupt chips keep the ones that KVM gives to them.
//! 2. A vector's irqfd is there exactly while the vector is not masked, so a signal is either injected or stays pending in
//!    its eventfd.
//! 3. While a guest is being loaded, nothing is told to KVM; [`MsiRoutes::commit`] does it at once, routes before irqfds.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KVM_MAX_IRQ_ROUTES, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::EventFd;

use crate::devices::pci::msi::{Doorbells, MsiMessage, MsiVector, MsiVectors};
use crate::devices::{DeviceError, eventfd};
use crate::x86::layout::MSI_GSI;

/// Pins of each PIC, and of the I/O APIC.
const PIC_PINS: u32 = 8;
const IOAPIC_PINS: u32 = 24;

/// The interrupt routes of a machine.
pub(super) struct MsiRoutes {
    vm: Arc<VmFd>,
    inner: Mutex<Inner>,
}

struct Inner {
    next: u32,
    routes: BTreeMap<u32, MsiMessage>,
    /// KVM does not know the routes as they are.
    changed: bool,
    /// Vectors with an irqfd.
    attached: BTreeSet<u32>,
    /// While a guest is being loaded: vectors that are to get one.
    deferred: Option<BTreeMap<u32, Arc<EventFd>>>,
}

impl MsiRoutes {
    /// The routes of a new VM. `loading`: nothing is told to KVM before [`Self::commit`].
    pub(super) fn new(vm: &Arc<VmFd>, loading: bool) -> Arc<Self> {
        let inner = Inner {
            next: MSI_GSI,
            routes: BTreeMap::new(),
            changed: false,
            attached: BTreeSet::new(),
            deferred: loading.then(BTreeMap::new),
        };
        Arc::new(Self { vm: Arc::clone(vm), inner: Mutex::new(inner) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the loading of a guest.
    pub(super) fn commit(&self) -> Result<(), DeviceError> {
        let mut inner = self.lock();
        let Some(deferred) = inner.deferred.take() else { return Ok(()) };
        let failed = DeviceError::io::<io::Error>("pci", "setting up the interrupts that were loaded");
        let attach = |inner: &mut Inner| {
            self.flush(inner)?;
            deferred.iter().try_for_each(|(gsi, eventfd)| self.attach(inner, *gsi, eventfd))
        };
        attach(&mut inner).map_err(failed)
    }

    /// Tells KVM all routes, if they have changed.
    fn flush(&self, inner: &mut Inner) -> io::Result<()> {
        if !inner.changed {
            return Ok(());
        }
        let entries: Vec<_> = chip_routes().chain(inner.routes.iter().map(msi_route)).collect();
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|error| io::Error::new(io::ErrorKind::OutOfMemory, format!("{error:?}")))?;
        self.vm.set_gsi_routing(&table)?;
        inner.changed = false;
        Ok(())
    }

    fn attach(&self, inner: &mut Inner, gsi: u32, eventfd: &EventFd) -> io::Result<()> {
        if inner.attached.insert(gsi)
            && let Err(error) = self.vm.register_irqfd(eventfd, gsi)
        {
            inner.attached.remove(&gsi);
            return Err(error.into());
        }
        Ok(())
    }

    fn detach(&self, inner: &mut Inner, gsi: u32, eventfd: &EventFd) -> io::Result<()> {
        if let Some(deferred) = &mut inner.deferred {
            deferred.remove(&gsi);
        }
        if inner.attached.remove(&gsi) {
            self.vm.unregister_irqfd(eventfd, gsi)?;
        }
        Ok(())
    }

    fn route(&self, gsi: u32, eventfd: &Arc<EventFd>, message: Option<MsiMessage>) -> io::Result<()> {
        let message = message.filter(is_possible);
        let mut inner = self.lock();
        let Some(message) = message else { return self.detach(&mut inner, gsi, eventfd) };
        inner.changed |= inner.routes.insert(gsi, message) != Some(message);
        if let Some(deferred) = &mut inner.deferred {
            deferred.insert(gsi, Arc::clone(eventfd));
            return Ok(());
        }
        self.flush(&mut inner)?;
        self.attach(&mut inner, gsi, eventfd)
    }

    /// Takes the irqfd away, and has the route ready for when it comes back.
    fn hold(&self, gsi: u32, eventfd: &EventFd, message: Option<MsiMessage>) -> io::Result<()> {
        let message = message.filter(is_possible);
        let mut inner = self.lock();
        self.detach(&mut inner, gsi, eventfd)?;
        if let Some(message) = message {
            inner.changed |= inner.routes.insert(gsi, message) != Some(message);
        }
        Ok(())
    }
}

/// Whether KVM takes a message. One that it does not, with bits 32 to 39 of the address set, would have it refuse the whole
/// table, with the routes of all other devices: such a vector is as good as masked.
fn is_possible(message: &MsiMessage) -> bool {
    (message.address >> 32) as u8 == 0
}

/// What KVM routes to the pins of the interrupt chips by itself.
fn chip_routes() -> impl Iterator<Item = kvm_irq_routing_entry> {
    let pin = |gsi, irqchip, pin| kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 { irqchip: kvm_irq_routing_irqchip { irqchip, pin } },
        ..Default::default()
    };
    let pics = (0..PIC_PINS).flat_map(move |at| {
        [pin(at, KVM_IRQCHIP_PIC_MASTER, at), pin(at + PIC_PINS, KVM_IRQCHIP_PIC_SLAVE, at)]
    });
    pics.chain((0..IOAPIC_PINS).map(move |at| pin(at, KVM_IRQCHIP_IOAPIC, at)))
}

fn msi_route((gsi, message): (&u32, &MsiMessage)) -> kvm_irq_routing_entry {
    let msi = kvm_irq_routing_msi {
        address_lo: message.address as u32,
        address_hi: (message.address >> 32) as u32,
        data: message.data,
        ..Default::default()
    };
    kvm_irq_routing_entry {
        gsi: *gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 { msi },
        ..Default::default()
    }
}

/// Where a machine's vectors come from.
pub(super) struct VectorSource(pub(super) Arc<MsiRoutes>);

impl MsiVectors for VectorSource {
    fn vector_on(&self, eventfd: EventFd) -> Result<Arc<dyn MsiVector>, DeviceError> {
        let mut inner = self.0.lock();
        let gsi = inner.next;
        if gsi as usize >= KVM_MAX_IRQ_ROUTES - (2 * PIC_PINS) as usize {
            let found = format!("{} message-signalled interrupts", gsi - MSI_GSI + 1);
            return Err(DeviceError::impossible("pci")((found, "fewer: KVM has no more routes".into())));
        }
        inner.next += 1;
        Ok(Arc::new(Vector { routes: Arc::clone(&self.0), gsi, eventfd: Arc::new(eventfd) }))
    }
}

/// One message-signalled interrupt.
struct Vector {
    routes: Arc<MsiRoutes>,
    gsi: u32,
    eventfd: Arc<EventFd>,
}

impl MsiVector for Vector {
    fn eventfd(&self) -> &EventFd {
        &self.eventfd
    }

    fn route(&self, message: Option<MsiMessage>) {
        if let Err(error) = self.routes.route(self.gsi, &self.eventfd, message) {
            tracing::error!("routing interrupt {} to {message:x?}: {error}", self.gsi);
        }
    }

    fn hold(&self, message: Option<MsiMessage>) {
        if let Err(error) = self.routes.hold(self.gsi, &self.eventfd, message) {
            tracing::error!("holding interrupt {} back: {error}", self.gsi);
        }
    }

    fn pending(&self) -> bool {
        if self.routes.lock().attached.contains(&self.gsi) {
            return false;
        }
        let fd = eventfd::borrow(&self.eventfd);
        poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }
}

/// A machine's doorbells.
pub(super) struct IoEvents(pub(super) Arc<VmFd>);

impl Doorbells for IoEvents {
    fn assign(&self, address: u64, fd: &EventFd) -> io::Result<()> {
        Ok(self.0.register_ioevent(fd, &IoEventAddress::Mmio(address), NoDatamatch)?)
    }

    fn deassign(&self, address: u64, fd: &EventFd) -> io::Result<()> {
        Ok(self.0.unregister_ioevent(fd, &IoEventAddress::Mmio(address), NoDatamatch)?)
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::{KVM_CAP_X2APIC_API, kvm_enable_cap};
    use kvm_ioctls::Kvm;

    use super::*;

    #[test]
    fn a_message_that_kvm_does_not_take_masks_its_vector_and_spoils_no_other() {
        let Ok(kvm) = Kvm::new() else {
            return crate::testing::skip("kvm", "/dev/kvm cannot be opened");
        };
        let vm = Arc::new(kvm.create_vm().unwrap());
        let x2apic = kvm_enable_cap { cap: KVM_CAP_X2APIC_API, args: [3, 0, 0, 0], ..Default::default() };
        vm.enable_cap(&x2apic).unwrap();
        vm.create_irq_chip().unwrap();
        let routes = MsiRoutes::new(&vm, false);
        let eventfd = || Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let (first, second) = (eventfd(), eventfd());
        let message = |high: u64| MsiMessage { address: 0xfee0_0000 | high << 32, data: 0x41 };
        routes.route(MSI_GSI, &first, Some(message(1))).unwrap();
        routes.hold(MSI_GSI, &first, Some(message(0x80))).unwrap();
        assert!(routes.lock().attached.is_empty());
        routes.route(MSI_GSI + 1, &second, Some(message(0x100))).unwrap();
        assert!(routes.lock().attached.contains(&(MSI_GSI + 1)));
        // And once it is one that KVM takes, it is sent.
        routes.route(MSI_GSI, &first, Some(message(0))).unwrap();
        assert_eq!(routes.lock().attached.len(), 2);
    }
}
