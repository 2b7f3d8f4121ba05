//! The rtc device.
