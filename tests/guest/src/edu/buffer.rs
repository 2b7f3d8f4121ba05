//! Memory that a device copies to and from.

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mlock, mmap_anonymous};

const PAGE: usize = 4096;

/// A page of its own that stays where it is.
pub struct Buffer(NonNull<u8>, usize);

impl Buffer {
    /// `size` bytes, a page at most.
    pub fn new(size: usize) -> std::io::Result<Self> {
        // Otherwise the kernel may move it.
        let _ = std::fs::write("/proc/sys/vm/compact_unevictable_allowed", "0");
        let page = NonZeroUsize::new(PAGE).ok_or(nix::Error::EINVAL)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, never unmapped.
        let at = unsafe { mmap_anonymous(None, page, protection, MapFlags::MAP_SHARED) }?;
        // SAFETY: the mapping is this one's.
        unsafe { mlock(at, PAGE) }?;
        Ok(Self(at.cast(), size.min(PAGE)))
    }

    /// Where it is for the device.
    pub fn address(&self) -> Result<u64, String> {
        let mut entry = [0; 8];
        let at = self.0.as_ptr() as u64 / PAGE as u64 * 8;
        let read = File::open("/proc/self/pagemap").and_then(|map| map.read_exact_at(&mut entry, at));
        read.map_err(|error| format!("reading /proc/self/pagemap: {error}"))?;
        // Bits 0 to 54: the frame (the kernel's Documentation/admin-guide/mm/pagemap.rst).
        let frame = u64::from_ne_bytes(entry) & ((1 << 55) - 1);
        if frame == 0 { Err("its page has no frame".into()) } else { Ok(frame * PAGE as u64) }
    }

    /// Fills it.
    pub fn fill(&self, content: impl Fn(usize) -> u8) {
        for at in 0..self.1 {
            // SAFETY: inside the page. The device writes to it too: no reference to it is made.
            unsafe { self.0.add(at).write_volatile(content(at)) };
        }
    }

    /// The first byte that is wrong, and where.
    pub fn find(&self, wrong: impl Fn(usize, u8) -> bool) -> Option<(usize, u8)> {
        // SAFETY: as for `fill`.
        (0..self.1)
            .map(|at| (at, unsafe { self.0.add(at).read_volatile() }))
            .find(|(at, byte)| wrong(*at, *byte))
    }
}
