//! virtio 1.2 devices over PCI, modern only: one transport, one device trait, one folder a device.
//!
//! 1. A queue belongs to one side at a time: to the transport, which configures and saves it, or to the device, between
//!    [`VirtioDevice::start`] and [`VirtioDevice::stop`]. Nothing is shared, so nothing is in flight once it is given back.
//! 2. A vCPU only signals: what a queue asks for is done on the device's own threads.
//! 3. A notification is not lost by a stop: whoever starts looks at every queue once, whatever its eventfd says.
//! 4. After a resume each queue's interrupt is given once too often rather than never.
//! 5. A driver that breaks the rules gets `DEVICE_NEEDS_RESET`, and nothing else of the machine does.
//!
//! `device` is the trait, `queue` a queue in a device's hands, `interrupt` the way back to the driver, `worker` a thread
//! for devices that need one, `transport` the PCI function. In a device's folder `config.rs` is what it is made with,
//! `device.rs` the device, `state.rs` its wire form, where it has state of its own.

pub mod balloon;
pub mod block;
pub mod buffers;
pub mod console;
mod device;
#[cfg(test)]
pub(crate) mod driver;
mod interrupt;
pub mod net;
mod queue;
pub mod rng;
mod transport;
pub mod vhost;
pub mod vsock;
mod worker;

use self::device::read_from;
pub use self::device::{DeviceKind, Run, VirtioDevice};
pub use self::interrupt::{Interrupt, Rewired};
pub use self::queue::{ActiveQueue, RingError};
pub use self::transport::{VirtioPci, VirtioQueueState, VirtioState, Wires};
pub use self::worker::{Handler, Wait, Worker};
