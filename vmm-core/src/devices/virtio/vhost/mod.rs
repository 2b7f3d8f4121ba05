//! Rings that the kernel serves: vhost-net and vhost-vsock (the kernel's `include/uapi/linux/vhost.h`).
//!
//! 1. A [`Vhost`] is one descriptor of a vhost device: two rings, and what is behind them ([`Backend`]).
//! 2. Between [`Vhost::start`] and [`Vhost::stop`] the kernel has the queues. Given back they say how far it came; it
//!    touches neither rings nor buffers any more.
//! 3. It has one owner at a time, a process. The owner lets go ([`Vhost::release`]) before another process, or the same
//!    one again, becomes it ([`Vhost::own`]); then everything is told to the kernel anew, at each start.
//! 4. vhost-net can change its owner. vhost-vsock cannot (Linux 7.2): who takes a guest over opens its own.
//! 5. The kernel's calls to the driver go through [`Interrupt`](super::Interrupt), so that masks, INTx and vectors are as
//!    they are for every other device.
//! 6. A driver that breaks the rules of a ring gets `DEVICE_NEEDS_RESET`.
//!
//! `device.rs` is the device, `node.rs` what kinds there are, `calls.rs` the kernel's calls, `ioctls.rs` the system calls.

mod calls;
mod device;
mod ioctls;
mod node;
#[cfg(test)]
mod tests;

pub use self::device::{Backend, RINGS, Vhost};
pub use self::node::Node;
