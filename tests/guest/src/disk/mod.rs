//! Load on disks: what a disk acknowledged is read back and must be there.
//!
//! 1. A raw disk ([`raw`]) has [`WORKERS`] requests in flight without pause: each thread waits for one, in blocks that no
//!    other thread touches, so that the last sequence number acknowledged is the one that must be read.
//! 2. A disk with an ext4 file system ([`files`]) is mounted all along; files are written, synced, renamed, read back from
//!    the disk and removed.
//! 3. Every block says which disk, which place and which sequence number it is, under a checksum ([`block`]).
//! 4. The longest time that a request took is kept; one that never comes back counts for as long as it is out.
//! 5. [`Disks::finish`] ends the load, reads all that was acknowledged once more and unmounts.

mod block;
mod files;
mod raw;

pub use raw::node;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use guest_init::status::DiskWatch;

use crate::clocks::monotonic;
use crate::memory::Checks;

/// Requests that a raw disk has in flight.
const WORKERS: usize = 32;
/// Threads that a file system has.
const FILE_WORKERS: usize = 4;
/// How long a thread waits after an error before it goes on.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// A disk that the guest was asked to use: its device's name, and whether it has an ext4 file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// As in /dev.
    pub device: String,
    /// Whether it has an ext4 file system.
    pub ext4: bool,
}

impl Named {
    /// Reads `vda,vdb:ext4`.
    pub fn list(text: &str) -> Vec<Self> {
        let disk = |word: &str| match word.strip_suffix(":ext4") {
            Some(device) => Self { device: device.to_owned(), ext4: true },
            None => Self { device: word.to_owned(), ext4: false },
        };
        text.split(',').filter(|word| !word.is_empty()).map(disk).collect()
    }
}

/// One disk under load.
struct Disk {
    named: Named,
    index: u32,
    checks: Checks,
    writes: AtomicU64,
    reads: AtomicU64,
    syncs: AtomicU64,
    longest: AtomicU64,
    /// When each worker's request was sent; 0 if it has none out.
    sent: Vec<AtomicU64>,
    /// Workers that have read everything back at the end.
    verified: AtomicUsize,
    stop: AtomicBool,
}

impl Disk {
    /// Makes one request, taking its time; an error is counted and named.
    fn request<T>(
        &self,
        worker: usize,
        what: &str,
        count: &AtomicU64,
        make: impl FnOnce() -> io::Result<T>,
    ) -> Option<T> {
        let sent = monotonic();
        self.sent[worker].store(sent, SeqCst);
        let result = make();
        self.sent[worker].store(0, SeqCst);
        self.longest.fetch_max(monotonic().saturating_sub(sent), SeqCst);
        match result {
            Ok(value) => {
                count.fetch_add(1, SeqCst);
                Some(value)
            }
            Err(error) => {
                self.checks.error(|| format!("{what}: {error}"));
                thread::sleep(AFTER_ERROR);
                None
            }
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(SeqCst)
    }

    fn report(&self) -> DiskWatch {
        let now = monotonic();
        let out = |sent: u64| if sent == 0 { 0 } else { now.saturating_sub(sent) };
        let waiting = self.sent.iter().map(|sent| out(sent.load(SeqCst))).max().unwrap_or(0);
        let checked = self.checks.report();
        DiskWatch {
            disk: self.named.device.clone(),
            writes: self.writes.load(SeqCst),
            reads: self.reads.load(SeqCst),
            syncs: self.syncs.load(SeqCst),
            longest: self.longest.load(SeqCst).max(waiting),
            errors: checked.errors,
            first: checked.first,
            finished: self.verified.load(SeqCst) == self.sent.len(),
        }
    }
}

/// All disks under load.
pub struct Disks {
    disks: Vec<Arc<Disk>>,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

impl Disks {
    /// Begins the load on the disks named.
    pub fn start(named: &[Named]) -> Self {
        let mut workers = Vec::new();
        let mut disks = Vec::new();
        for (index, named) in named.iter().enumerate() {
            let count = if named.ext4 { FILE_WORKERS } else { WORKERS };
            let disk = Arc::new(Disk {
                named: named.clone(),
                index: index as u32,
                checks: Checks::default(),
                writes: AtomicU64::new(0),
                reads: AtomicU64::new(0),
                syncs: AtomicU64::new(0),
                longest: AtomicU64::new(0),
                sent: (0..count).map(|_| AtomicU64::new(0)).collect(),
                verified: AtomicUsize::new(0),
                stop: AtomicBool::new(false),
            });
            disks.push(Arc::clone(&disk));
            let begun = if named.ext4 { files::start(&disk) } else { raw::start(&disk) };
            match begun {
                Ok(begun) => workers.extend(begun),
                Err(error) => disk.checks.error(|| format!("starting: {error}")),
            }
        }
        Self { disks, workers: Mutex::new(workers) }
    }

    /// Forgets the longest request of each disk.
    pub fn reset(&self) {
        self.disks.iter().for_each(|disk| disk.longest.store(0, SeqCst));
    }

    /// The figures so far.
    pub fn report(&self) -> Vec<DiskWatch> {
        self.disks.iter().map(|disk| disk.report()).collect()
    }

    /// Ends the load, once all that was acknowledged has been read again, and unmounts.
    pub fn finish(&self) {
        self.disks.iter().for_each(|disk| disk.stop.store(true, SeqCst));
        let workers = std::mem::take(&mut *self.workers.lock().unwrap_or_else(PoisonError::into_inner));
        let any = !workers.is_empty();
        for worker in workers {
            let _ = worker.join();
        }
        for disk in self.disks.iter().filter(|disk| any && disk.named.ext4) {
            files::unmount(disk);
        }
    }
}

/// A small generator of numbers for choosing places; each worker has its own.
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_named_by_its_device_and_whether_it_has_a_file_system() {
        let disk = |device: &str, ext4| Named { device: device.into(), ext4 };
        assert_eq!(Named::list("vda,vdb:ext4"), [disk("vda", false), disk("vdb", true)]);
        assert!(Named::list("").is_empty());
    }
}
