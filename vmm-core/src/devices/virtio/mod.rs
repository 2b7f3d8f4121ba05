//! Virtio devices (virtio 1.2).

pub mod block;
pub mod buffers;
pub mod net;
pub mod options;
