//! A network device on a tap (virtio 1.2, section 5.1).
//!
//! 1. A tap is opened by name, or taken from a descriptor that a manager gave; either way it is checked to be a tap
//!    whose packets carry the virtio-net header.
//! 2. Packets go straight between the tap and guest RAM, the header with them.
//! 3. What the tap does not take or does not have is never waited for.
//! 4. Nothing about a tap that a guest is using is changed by taking its descriptors over.
//!
//! `mover.rs` is who moves a pair's packets,
//! `config.rs` is what a network device is made of, `device.rs` the device, `pair.rs` the thread of a pair of queues with
//! `receive.rs` and `transmit.rs`, `control.rs` the control queue, `state.rs` the wire form, `tap.rs` the tap, `mac.rs`
//! addresses, `announce.rs` what tells the network where a guest is.

mod announce;
mod config;
mod control;
mod device;
mod mac;
mod mover;
mod pair;
mod receive;
mod state;
mod tap;
mod transmit;

#[cfg(test)]
mod tests;

pub use self::announce::{FRAME, rarp};
pub use self::config::{MAX_QUEUES, NetConfig};
pub use self::device::Net;
pub use self::mac::Mac;
pub use self::state::NetState;
pub use self::tap::{HEADER, Tap, TapError, TapQueue, offloads};
