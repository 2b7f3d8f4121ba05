//! The host side of virtio-net.
