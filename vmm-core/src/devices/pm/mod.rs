//! The pm device.
