//! The serial device.
