//! Where the DMA of assigned devices goes: the guest's RAM, at the addresses that the guest knows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Instant;

use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::limits;
use crate::cpr::Mode;
use crate::cpr::blockers::Blocker;
use crate::cpr::fds::FdTable;
use crate::cpr::format::{StateReader, StateWriter};
use crate::devices::{Device, DeviceError};

/// An address space that devices are attached to.
pub(super) trait Space: Send + Sync {
    /// Its id among the machine's devices.
    fn id(&self) -> &'static str;

    /// Maps a guest's RAM for the first time. All of it is pinned.
    fn map(&self, memory: &GuestMemoryMmap) -> Result<(), DeviceError>;

    /// Has the mappings count as this process's, whosever they were and however far another has got with that. The devices go
    /// on all the while.
    fn take(&self, memory: &GuestMemoryMmap) -> Result<(), DeviceError>;

    /// How many times the RAM counts as pinned by one user while it changes hands.
    fn counts_at_change(&self) -> u64;

    /// Registers (a duplicate of) its descriptor.
    fn register(&self, fds: &mut FdTable) -> Result<(), DeviceError>;

    /// Why it cannot change hands.
    fn blocker(&self) -> Option<String>;
}

/// The mappings of a guest's RAM in an address space, as a device of the machine.
pub struct Mappings {
    space: Arc<dyn Space>,
    memory: Arc<GuestMemoryMmap>,
    /// They may be another process's.
    away: AtomicBool,
    /// They are still to be made, when all of the RAM is there.
    due: AtomicBool,
}

/// Where mappings come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mapped {
    /// They are made at once.
    Now,
    /// They are made when the guest is loaded: until then its RAM may be taken out of its file, and put there again.
    OnLoad,
    /// Another process has made them.
    Elsewhere,
}

impl Mappings {
    /// Those of a guest that is booted, or loaded with devices that are opened afresh; or those of one that comes with its devices.
    pub(super) fn new(
        space: Arc<dyn Space>,
        memory: Arc<GuestMemoryMmap>,
        mapped: Mapped,
    ) -> Result<Self, DeviceError> {
        let ram: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
        let elsewhere = mapped == Mapped::Elsewhere;
        let counts = if elsewhere { space.counts_at_change() } else { 1 };
        limits::may_pin(space.id(), ram.saturating_mul(counts))?;
        if mapped == Mapped::Now {
            space.map(&memory)?;
        }
        let due = AtomicBool::new(mapped == Mapped::OnLoad);
        Ok(Self { space, memory, away: AtomicBool::new(elsewhere), due })
    }

    fn take(&self) -> Result<(), DeviceError> {
        self.space.take(&self.memory)?;
        self.away.store(false, SeqCst);
        Ok(())
    }
}

impl Device for Mappings {
    fn id(&self) -> &str {
        self.space.id()
    }

    fn quiesce(&self, _deadline: Instant) -> Result<(), DeviceError> {
        self.away.store(true, SeqCst);
        Ok(())
    }

    /// Takes the mappings back that a target may have taken. The devices' DMA does not depend on it.
    fn resume(&self) {
        if self.away.load(SeqCst)
            && let Err(error) = self.take()
        {
            tracing::error!("{error}; DMA goes on, and counts as another process's memory");
        }
    }

    fn save(&self, _out: &mut StateWriter) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Before the claim: what cannot be taken over is a reason to refuse the guest.
    fn load(&self, _state: &mut StateReader) -> Result<(), DeviceError> {
        if self.due.swap(false, SeqCst) { self.space.map(&self.memory) } else { self.take() }
    }

    fn descriptors(&self, mode: Mode, fds: &mut FdTable) -> Result<(), DeviceError> {
        if mode == Mode::CprReboot { Ok(()) } else { self.space.register(fds) }
    }

    fn blockers(&self, mode: Mode) -> Vec<Blocker> {
        if mode == Mode::CprReboot {
            return Vec::new();
        }
        self.space.blocker().map(|why| Blocker::new(self.id(), why)).into_iter().collect()
    }
}

/// A range of the guest's RAM.
pub(super) struct Range<'a> {
    /// Where it is in the guest, and for its devices.
    pub(super) guest: u64,
    /// Bytes.
    pub(super) size: u64,
    /// Where it is in this process.
    pub(super) host: u64,
    /// What it is made of, and where in that.
    pub(super) file: Option<(&'a std::fs::File, u64)>,
}

/// The ranges of a guest's RAM.
pub(super) fn ranges(memory: &GuestMemoryMmap) -> impl Iterator<Item = Range<'_>> {
    memory.iter().map(|region| Range {
        guest: vm_memory::Address::raw_value(&region.start_addr()),
        size: region.len(),
        host: region.as_ptr() as u64,
        file: region.file_offset().map(|at| (at.file(), at.start())),
    })
}

/// The error of RAM that could not be mapped for devices.
pub(super) fn unmapped<'a>(id: &'a str, range: &'a Range<'_>) -> impl FnOnce(nix::Error) -> DeviceError + 'a {
    let why = |error| match error {
        nix::Error::ENOMEM => format!("; all RAM is pinned: {}", limits::WAY_OUT),
        nix::Error::EFAULT | nix::Error::EOPNOTSUPP => {
            "; RAM on this file system cannot be pinned for a device".to_owned()
        }
        _ => String::new(),
    };
    move |error| {
        let doing =
            format!("mapping {:#x} bytes of RAM at {:#x} for devices{}", range.size, range.guest, why(error));
        DeviceError::io::<std::io::Error>(id, doing)(error.into())
    }
}
