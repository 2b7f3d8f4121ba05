//! The kinds of vhost devices.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use nix::sys::stat::{major, minor};

use crate::cpr::fds::{FdError, FdName};
use crate::devices::DeviceError;

/// The major number of misc devices.
const MISC: u64 = 10;

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

    /// Its minor number (the kernel's `include/linux/miscdevice.h`).
    fn minor(self) -> u64 {
        match self {
            Self::Net => 238,
            Self::Vsock => 241,
        }
    }

    /// Opens it for the device `id`.
    pub(super) fn open(self, id: &str) -> Result<OwnedFd, DeviceError> {
        let opened = OpenOptions::new().read(true).write(true).open(self.path());
        let doing = || format!("opening {} (the kernel's module {} has it)", self.path(), self.module());
        Ok(opened.map_err(|error| DeviceError::io(id, doing())(error))?.into())
    }

    /// Takes a descriptor that must be one.
    pub(super) fn check(self, name: &FdName, fd: OwnedFd) -> Result<OwnedFd, FdError> {
        let file = File::from(fd);
        let doing = "asking what it is";
        let meta = file.metadata().map_err(|source| FdError::Io { name: name.clone(), doing, source })?;
        let is = |dev| meta.file_type().is_char_device() && (major(dev), minor(dev)) == (MISC, self.minor());
        if is(meta.rdev()) {
            return Ok(file.into());
        }
        let expected = format!("{}, device {MISC}:{}", self.path(), self.minor());
        let found = format!("something else, device {}:{}", major(meta.rdev()), minor(meta.rdev()));
        Err(FdError::Wrong { name: name.clone(), found, expected })
    }
}
