//! The chardev device.
