//! virtio-block (virtio 1.2, section 5.2): a disk.
//!
//! 1. An image has one user who writes or many who read: it is locked by a lock that travels with its descriptor
//!    (`lock.rs`).
//! 2. An image that was changed, resized or replaced while nobody held it is refused by the name of what differs
//!    (`identity.rs`).
//! 3. No byte of the guest is trusted: a request is checked whole before any of it is done (`request.rs`).
//! 4. Nothing waits but who asks to: I/O is asynchronous, and [`engine::Engine::drain`] has a deadline.
//!
//! `device.rs` is the device, `queue.rs` a thread for one of its queues, `state.rs` its wire form, `config.rs` what a disk is
//! made of. `image.rs` opens and takes over images, `probe.rs` asks the kernel about
//! them, `engine/` does the I/O.

mod config;
mod device;
pub mod engine;
mod identity;
mod image;
mod lock;
mod probe;
mod queue;
mod request;
mod state;

pub use self::config::{Aio, BlockConfig, MAX_QUEUES, MAX_SERIAL};
pub use self::device::Block;
pub use self::identity::{DeviceIdentity, ImageIdentity};
pub use self::image::{Backing, Image, ImageError};
pub use self::lock::Holder;
pub use self::probe::{Alignment, ImageKind};
pub use self::request::{Action, Limits, Reply, Request, RequestError, SECTOR, Status, serial_id};
pub use self::state::BlockState;
