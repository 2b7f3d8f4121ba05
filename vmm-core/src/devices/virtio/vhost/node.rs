//! The kinds of vhost devices.

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;

use crate::devices::DeviceError;

/// A kind of vhost device: the node that it is opened by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// /dev/vhost-net: packets to and from a tap.
    Net,
    /// /dev/vhost-vsock: the host's AF_VSOCK sockets.
    Vsock,
}

impl Node {
    /// Where it is.
    pub fn path(self) -> &'static str {
        match self {
            Self::Net => "/dev/vhost-net",
            Self::Vsock => "/dev/vhost-vsock",
        }
    }

    /// The kernel module that has it.
    fn module(self) -> &'static str {
        match self {
            Self::Net => "vhost_net",
            Self::Vsock => "vhost_vsock",
        }
    }

    /// Opens it for the device `id`.
    pub(super) fn open(self, id: &str) -> Result<OwnedFd, DeviceError> {
        let opened = OpenOptions::new().read(true).write(true).open(self.path());
        let doing = || format!("opening {} (the kernel's module {} has it)", self.path(), self.module());
        Ok(opened.map_err(|error| DeviceError::io(id, doing())(error))?.into())
    }
}
