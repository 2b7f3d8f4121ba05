//! What the kernel is asked to do, and may be told.

use std::os::fd::BorrowedFd;

use nix::Result;

use super::ioctls::{Regions, RingAddress};

/// The kernel behind a vhost device, or what stands for it where there is none. Rings are numbered from 0.
pub(crate) trait Kernel: Send + Sync {
    /// The features that it has, of rings and its own.
    fn features(&self) -> Result<u64>;

    /// Says which features the driver took.
    fn set_features(&self, features: u64) -> Result<()>;

    /// Makes this process the owner. `EBUSY` while it has one.
    fn set_owner(&self) -> Result<()>;

    /// Says where the guest's memory is.
    fn set_memory(&self, regions: &Regions) -> Result<()>;

    /// Says how many descriptors a ring has.
    fn set_size(&self, ring: u32, number: u32) -> Result<()>;

    /// Says where a ring is.
    fn set_address(&self, address: &RingAddress) -> Result<()>;

    /// Says what it takes next from a ring.
    fn set_base(&self, ring: u32, number: u32) -> Result<()>;

    /// What it would take next from a ring.
    fn base(&self, ring: u32) -> Result<u32>;

    /// Says where the driver's notifications of a ring come from.
    fn set_kick(&self, ring: u32, fd: BorrowedFd<'_>) -> Result<()>;

    /// Says where it signals that it gave something back in a ring.
    fn set_call(&self, ring: u32, fd: BorrowedFd<'_>) -> Result<()>;

    /// Says where it signals that a ring is broken.
    fn set_error(&self, ring: u32, fd: BorrowedFd<'_>) -> Result<()>;

    /// vhost-net: serves a ring from a queue of a tap, or from now on not.
    fn set_tap(&self, ring: u32, tap: Option<BorrowedFd<'_>>) -> Result<()>;

    /// vhost-vsock: takes an address for the guest. `EADDRINUSE` if another guest has it.
    fn set_guest_cid(&self, cid: u64) -> Result<()>;

    /// vhost-vsock: serves its rings, or from now on not.
    fn set_running(&self, running: bool) -> Result<()>;
}
