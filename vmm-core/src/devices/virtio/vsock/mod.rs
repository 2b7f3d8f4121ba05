//! virtio-vsock (virtio 1.2, 5.10): AF_VSOCK sockets between guest and host, served by the kernel (vhost-vsock).
//!
//! 1. The guest's address, its CID, is one guest's on a host, and the same for all of the guest's life.
//! 2. Open connections end with a handover, in every mode: the kernel (Linux 7.2) ties vhost-vsock to the process that
//!    opened it. Both ends are told at once: the host's sockets by the kernel, the guest's by
//!    `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`. Listening sockets stay, and new connections work.
//! 3. Until the guest is claimed nothing has ended: the source only stands still, and goes on after a rollback with its
//!    connections whole.
//! 4. Who takes the guest over opens its own vhost-vsock while the guest still runs elsewhere, and takes the CID when the
//!    source has let go of it. That is after the claim: it costs no downtime, and the guest's queues wait.
//! 5. Nobody can connect to the guest before its driver has heard of the reset (it makes the event's buffer available
//!    again): the driver closes whatever is connected when it hears. A driver that does not say so is served a few
//!    seconds later all the same.
//!
//! `device.rs` is the device, `turn.rs` how it is known that a CID is free, `events.rs` what the guest is told.

mod config;
mod device;
mod events;
#[cfg(test)]
mod tests;
mod turn;

pub use self::config::VsockConfig;
pub use self::device::Vsock;
