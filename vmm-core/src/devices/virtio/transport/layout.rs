//! Where the transport's registers are: one BAR, a page for each kind, and the capabilities that say so.

use crate::devices::pci::{BarKind, BarSpec, ConfigSpace, Identity};
use crate::devices::virtio::DeviceKind;

/// The BAR that has everything.
pub(super) const BAR: BarSpec =
    BarSpec { index: 0, kind: BarKind::Memory64, prefetchable: false, size: 0x8000 };

/// Pages of the BAR.
const PAGE: u64 = 0x1000;
/// Common configuration.
const COMMON: u64 = 0;
/// Interrupt status.
const ISR: u64 = PAGE;
/// The device's own configuration.
const DEVICE: u64 = 2 * PAGE;
/// Notifications.
const NOTIFY: u64 = 3 * PAGE;
/// MSI-X table, with room for 256 vectors.
pub(super) const TABLE: u64 = 4 * PAGE;
/// MSI-X pending bits.
pub(super) const PENDING: u64 = 5 * PAGE;

/// Bytes between the notification addresses of two queues.
pub(super) const NOTIFY_STEP: u64 = 4;

/// A kind of register, and the offset in its page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Register {
    Common(u64),
    Isr,
    Device(u64),
    Notify(u16),
    Table(u64),
    Pending(u64),
}

/// What is at an offset of the BAR.
pub(super) fn register(offset: u64) -> Option<Register> {
    let (page, at) = (offset & !(PAGE - 1), offset % PAGE);
    Some(match page {
        COMMON => Register::Common(at),
        ISR if at == 0 => Register::Isr,
        DEVICE => Register::Device(at),
        NOTIFY => Register::Notify((at / NOTIFY_STEP) as u16),
        TABLE => Register::Table(at),
        PENDING => Register::Pending(at),
        _ => return None,
    })
}

/// Where writes notify a queue, from the start of the BAR.
pub(super) fn notify_offset(queue: u16) -> u64 {
    NOTIFY + u64::from(queue) * NOTIFY_STEP
}

/// The capability's id: vendor specific.
const VENDOR: u8 = 9;
const VIRTIO: u16 = 0x1af4;
/// Device ids of modern devices start here.
const DEVICE_IDS: u16 = 0x1040;
/// Of modern devices.
const REVISION: u8 = 1;

/// Kinds of capability (virtio 1.2, 4.1.4).
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_ISR: u8 = 3;
const CAP_DEVICE: u8 = 4;
const CAP_CONFIG_ACCESS: u8 = 5;

/// The configuration space of a device, with its capabilities but MSI-X. Gives the offset of the configuration access
/// capability too.
pub(super) fn config_space(kind: DeviceKind) -> (ConfigSpace, usize) {
    let identity = Identity {
        vendor: VIRTIO,
        device: DEVICE_IDS + kind.id,
        revision: REVISION,
        class: kind.class,
        subsystem_vendor: VIRTIO,
        subsystem: DEVICE_IDS + kind.id,
        interrupt_pin: true,
    };
    let mut config = ConfigSpace::new(identity, &[BAR]);
    let capability = |kind: u8, offset: u64, length: u64, more: &[u8]| {
        let size = 16 + more.len() as u8;
        let bar = [size, kind, BAR.index as u8, 0, 0, 0];
        [&bar[..], &(offset as u32).to_le_bytes(), &(length as u32).to_le_bytes(), more].concat()
    };
    config.add_capability(VENDOR, &capability(CAP_COMMON, COMMON, super::registers::SIZE, &[]), &[]);
    config.add_capability(VENDOR, &capability(CAP_ISR, ISR, 4, &[]), &[]);
    config.add_capability(VENDOR, &capability(CAP_DEVICE, DEVICE, PAGE, &[]), &[]);
    let step = (NOTIFY_STEP as u32).to_le_bytes();
    config.add_capability(VENDOR, &capability(CAP_NOTIFY, NOTIFY, PAGE, &step), &[]);
    // The driver writes which BAR, offset and length an access to the last four bytes is to.
    let writable =
        [0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    let access = config.add_capability(VENDOR, &capability(CAP_CONFIG_ACCESS, 0, 0, &[0; 4]), &writable);
    (config, access)
}
