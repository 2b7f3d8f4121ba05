//! A port.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::control::Facts;
use crate::devices::chardev::Chardev;

/// A port: a byte stream, and what the driver knows of it.
#[derive(Debug)]
pub(super) struct Port {
    /// Its number.
    pub(super) number: u32,
    /// Its name in the guest; the console has none.
    pub(super) name: Option<String>,
    stream: Mutex<Stream>,
}

/// What changes of a port.
#[derive(Debug)]
pub(super) struct Stream {
    /// The back end.
    pub(super) chardev: Chardev,
    /// Whether the driver has asked for it. Linux's, coming back from sleep, puts its ports in order one after the other, and falls over
    /// a message about one that it has not come to.
    pub(super) ready: bool,
    /// Whether somebody in the guest has it open.
    pub(super) open: bool,
    /// Whether the driver was told that somebody is connected.
    pub(super) told_connected: bool,
    /// What the driver is still to be told.
    pub(super) due: Facts,
}

impl Port {
    pub(super) fn new(number: u32, name: Option<String>, chardev: Chardev) -> Self {
        let stream =
            Stream { chardev, ready: false, open: false, told_connected: false, due: Facts::empty() };
        Self { number, name, stream: Mutex::new(stream) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Stream> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The port's queue for bytes to the guest; the one from the guest follows it.
    pub(super) fn receive_queue(&self) -> u16 {
        match self.number {
            0 => 0,
            number => 2 * number as u16 + 2,
        }
    }
}

impl Stream {
    /// Back to what a driver finds that has just started.
    pub(super) fn reset(&mut self) {
        self.ready = false;
        self.open = false;
        self.told_connected = false;
        self.due = Facts::empty();
    }

    /// Has the driver told when somebody connected or left, if it has asked for the port. True if there is something to tell.
    pub(super) fn watch_connection(&mut self) -> bool {
        let connected = self.chardev.is_connected();
        let changed = self.ready && connected != self.told_connected;
        if changed {
            self.told_connected = connected;
            self.due |= Facts::CONNECTION;
        }
        changed
    }
}
