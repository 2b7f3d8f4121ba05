//! Rings that the kernel serves: vhost-net and vhost-vsock (the kernel's `include/uapi/linux/vhost.h`).
//!
//! 1. A [`Vhost`] is one descriptor of a vhost device: two rings, and what is behind them ([`Backend`]).
//! 2. Between [`Vhost::start`] and [`Vhost::stop`] the kernel has the queues. Given back they say how far it came; it
//!    touches neither rings nor buffers any more.
//! 3. It has one owner, the process that opened it: it does not change hands. Whoever takes a guest over opens its own
//!    before the guest stops, and the source keeps what it has until then: a handover that fails needs nothing back.
//! 4. The kernel's calls to the driver go through [`Interrupt`](super::Interrupt), so that masks, INTx and vectors are as
//!    they are for every other device.
//! 5. A driver that breaks the rules of a ring gets `DEVICE_NEEDS_RESET`.
//!
//! `device.rs` is the device, `node.rs` what kinds there are, `calls.rs` the kernel's calls, `kernel.rs` what is asked of
//! the kernel, `ioctls.rs` the system calls that do.

mod calls;
mod device;
mod ioctls;
mod kernel;
mod node;
#[cfg(test)]
mod tests;

pub use self::device::{Backend, RINGS, Vhost};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::ioctls::{Region, Regions, RingAddress};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::kernel::Kernel;
pub use self::node::Node;
