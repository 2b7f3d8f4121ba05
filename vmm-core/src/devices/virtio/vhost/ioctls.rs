//! The system calls of vhost devices (the kernel's `include/uapi/linux/vhost.h`).
//!
//! Each call takes numbers, or a structure that it reads or writes while it lasts. What is told by them of this process's
//! memory is kept mapped by whoever tells it, for as long as a ring is served.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::Result;

use super::kernel::Kernel;

/// The most regions of memory that the kernel takes, as it is set up by default.
pub(super) const MAX_REGIONS: usize = 64;

/// A number for a ring.
#[repr(C)]
pub(super) struct RingNumber {
    ring: u32,
    number: u32,
}

/// A descriptor for a ring, -1 for none.
#[repr(C)]
pub(super) struct RingFile {
    ring: u32,
    fd: RawFd,
}

/// Where a ring is in this process's memory.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct RingAddress {
    pub ring: u32,
    pub flags: u32,
    pub descriptors: u64,
    pub used: u64,
    pub available: u64,
    pub log: u64,
}

/// A region of guest memory, in guest addresses and in those of this process.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Region {
    pub guest: u64,
    pub size: u64,
    pub host: u64,
    pub flags: u64,
}

/// The guest's memory: as many of the regions as `count` says.
#[repr(C)]
pub(crate) struct Regions {
    count: u32,
    padding: u32,
    regions: [Region; MAX_REGIONS],
}

impl Regions {
    /// Which they are.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn list(&self) -> &[Region] {
        &self.regions[..self.count as usize]
    }

    /// Those that are given, at most [`MAX_REGIONS`].
    pub(super) fn new(list: &[Region]) -> Option<Self> {
        let mut regions = [Region::default(); MAX_REGIONS];
        regions.get_mut(..list.len())?.copy_from_slice(list);
        Some(Self { count: list.len() as u32, padding: 0, regions })
    }
}

/// What [`Regions`] begins with: its size is in the number of the call.
#[repr(C)]
pub(super) struct RegionsHead([u32; 2]);

mod raw {
    use super::{RegionsHead, RingAddress, RingFile, RingNumber};

    const VHOST: u8 = 0xaf;

    nix::ioctl_read!(get_features, VHOST, 0x00, u64);
    nix::ioctl_write_ptr!(set_features, VHOST, 0x00, u64);
    nix::ioctl_none!(set_owner, VHOST, 0x01);
    nix::ioctl_write_ptr!(set_mem_table, VHOST, 0x03, RegionsHead);
    nix::ioctl_write_ptr!(set_vring_num, VHOST, 0x10, RingNumber);
    nix::ioctl_write_ptr!(set_vring_addr, VHOST, 0x11, RingAddress);
    nix::ioctl_write_ptr!(set_vring_base, VHOST, 0x12, RingNumber);
    nix::ioctl_readwrite!(get_vring_base, VHOST, 0x12, RingNumber);
    nix::ioctl_write_ptr!(set_vring_kick, VHOST, 0x20, RingFile);
    nix::ioctl_write_ptr!(set_vring_call, VHOST, 0x21, RingFile);
    nix::ioctl_write_ptr!(set_vring_err, VHOST, 0x22, RingFile);
    nix::ioctl_write_ptr!(net_set_backend, VHOST, 0x30, RingFile);
    nix::ioctl_write_ptr!(vsock_set_guest_cid, VHOST, 0x60, u64);
    nix::ioctl_write_ptr!(vsock_set_running, VHOST, 0x61, libc::c_int);
}

/// An open vhost device.
#[derive(Debug)]
pub(super) struct VhostFd(pub(super) OwnedFd);

impl AsFd for VhostFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Kernel for VhostFd {
    fn features(&self) -> Result<u64> {
        let mut features = 0;
        // SAFETY: the descriptor is open; the number outlives the call, which writes it.
        unsafe { raw::get_features(self.0.as_raw_fd(), &raw mut features) }?;
        Ok(features)
    }

    fn set_features(&self, features: u64) -> Result<()> {
        // SAFETY: the descriptor is open; the number outlives the call, which reads it.
        unsafe { raw::set_features(self.0.as_raw_fd(), &raw const features) }.map(drop)
    }

    fn set_owner(&self) -> Result<()> {
        // SAFETY: the descriptor is open; the call takes nothing else.
        unsafe { raw::set_owner(self.0.as_raw_fd()) }.map(drop)
    }

    fn set_memory(&self, regions: &Regions) -> Result<()> {
        let table = std::ptr::from_ref(regions).cast();
        // SAFETY: the descriptor is open; the call reads the head and as many regions as it counts, all of them in a
        // structure that outlives the call. The regions themselves are reached only while a ring is served.
        unsafe { raw::set_mem_table(self.0.as_raw_fd(), table) }.map(drop)
    }

    fn set_size(&self, ring: u32, number: u32) -> Result<()> {
        // SAFETY: the descriptor is open; the structure outlives the call, which reads it.
        unsafe { raw::set_vring_num(self.0.as_raw_fd(), &RingNumber { ring, number }) }.map(drop)
    }

    fn set_address(&self, address: &RingAddress) -> Result<()> {
        // SAFETY: the descriptor is open; the structure outlives the call, which reads it. What it points to is reached
        // only while the ring is served.
        unsafe { raw::set_vring_addr(self.0.as_raw_fd(), address) }.map(drop)
    }

    fn set_base(&self, ring: u32, number: u32) -> Result<()> {
        // SAFETY: the descriptor is open; the structure outlives the call, which reads it.
        unsafe { raw::set_vring_base(self.0.as_raw_fd(), &RingNumber { ring, number }) }.map(drop)
    }

    fn base(&self, ring: u32) -> Result<u32> {
        let mut base = RingNumber { ring, number: 0 };
        // SAFETY: the descriptor is open; the structure outlives the call, which reads and writes it.
        unsafe { raw::get_vring_base(self.0.as_raw_fd(), &raw mut base) }?;
        Ok(base.number)
    }

    fn set_kick(&self, ring: u32, fd: BorrowedFd<'_>) -> Result<()> {
        let file = RingFile { ring, fd: fd.as_raw_fd() };
        // SAFETY: both descriptors are open; the structure outlives the call, which reads it. The kernel holds on to the
        // eventfd by itself.
        unsafe { raw::set_vring_kick(self.0.as_raw_fd(), &raw const file) }.map(drop)
    }

    fn set_call(&self, ring: u32, fd: BorrowedFd<'_>) -> Result<()> {
        let file = RingFile { ring, fd: fd.as_raw_fd() };
        // SAFETY: as for `set_kick`.
        unsafe { raw::set_vring_call(self.0.as_raw_fd(), &raw const file) }.map(drop)
    }

    fn set_error(&self, ring: u32, fd: BorrowedFd<'_>) -> Result<()> {
        let file = RingFile { ring, fd: fd.as_raw_fd() };
        // SAFETY: as for `set_kick`.
        unsafe { raw::set_vring_err(self.0.as_raw_fd(), &raw const file) }.map(drop)
    }

    fn set_tap(&self, ring: u32, tap: Option<BorrowedFd<'_>>) -> Result<()> {
        let file = RingFile { ring, fd: tap.map_or(-1, |tap| tap.as_raw_fd()) };
        // SAFETY: the descriptors are open; the structure outlives the call, which reads it. The kernel holds on to the
        // tap by itself.
        unsafe { raw::net_set_backend(self.0.as_raw_fd(), &raw const file) }.map(drop)
    }

    fn set_guest_cid(&self, cid: u64) -> Result<()> {
        // SAFETY: the descriptor is open; the number outlives the call, which reads it.
        unsafe { raw::vsock_set_guest_cid(self.0.as_raw_fd(), &raw const cid) }.map(drop)
    }

    fn set_running(&self, running: bool) -> Result<()> {
        let running = libc::c_int::from(running);
        // SAFETY: the descriptor is open; the number outlives the call, which reads it.
        unsafe { raw::vsock_set_running(self.0.as_raw_fd(), &raw const running) }.map(drop)
    }
}
