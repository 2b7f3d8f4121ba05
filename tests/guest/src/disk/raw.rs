//! A disk without a file system, written and read by direct I/O.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::block::{BLOCK, Block, Label};
use super::{Disk, WORKERS, next_random};

/// Writes of one worker between two flushes.
const FLUSH_EVERY: u64 = 64;
/// How long a device may take to appear.
const APPEARS_WITHIN: Duration = Duration::from_secs(10);

/// Waits for a device's node.
pub fn node(device: &str) -> PathBuf {
    let path = Path::new("/dev").join(device);
    let deadline = Instant::now() + APPEARS_WITHIN;
    while !path.exists() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
    }
    path
}

/// Starts the workers of a disk.
pub fn start(disk: &Arc<Disk>) -> io::Result<Vec<JoinHandle<()>>> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(node(&disk.named.device))?;
    let each = file.seek(SeekFrom::End(0))? / BLOCK as u64 / WORKERS as u64;
    if each == 0 {
        return Err(io::Error::other("the disk has not one block for each worker"));
    }
    let file = Arc::new(file);
    let worker = |index: usize| {
        let (disk, file) = (Arc::clone(disk), Arc::clone(&file));
        thread::spawn(move || {
            let written = vec![0; each as usize];
            let first = index as u64 * each;
            Worker { disk: &disk, file: &file, index, first, written, block: Block::empty() }.run();
        })
    };
    Ok((0..WORKERS).map(worker).collect())
}

/// One thread and the blocks that are its own.
struct Worker<'a> {
    disk: &'a Disk,
    file: &'a File,
    index: usize,
    /// The first of its blocks.
    first: u64,
    /// The sequence number acknowledged last for each of its blocks; 0 if what is there is not known.
    written: Vec<u64>,
    block: Box<Block>,
}

impl Worker<'_> {
    fn run(&mut self) {
        let mut random = self.index as u64;
        for sequence in 1.. {
            if self.disk.stopped() {
                break;
            }
            // The first round leaves no block unwritten; after that any may be next.
            let at = match sequence as usize - 1 {
                first_round if first_round < self.written.len() => first_round,
                _ => next_random(&mut random) as usize % self.written.len(),
            };
            self.write(at, sequence);
            self.read(next_random(&mut random) as usize % self.written.len());
            if sequence % FLUSH_EVERY == 0 {
                self.disk.request(self.index, "flushing", &self.disk.syncs, || self.file.sync_data());
            }
        }
        for at in 0..self.written.len() {
            self.read(at);
        }
        self.disk.verified.fetch_add(1, SeqCst);
    }

    fn label(&self, at: usize, sequence: u64) -> Label {
        Label { disk: self.disk.index, place: self.first + at as u64, sequence }
    }

    fn write(&mut self, at: usize, sequence: u64) {
        let label = self.label(at, sequence);
        self.block.fill(label);
        let what = format!("writing block {}", label.place);
        let offset = label.place * BLOCK as u64;
        let done = self
            .disk
            .request(self.index, &what, &self.disk.writes, || self.file.write_all_at(&self.block.0, offset));
        self.written[at] = if done.is_some() { sequence } else { 0 };
    }

    fn read(&mut self, at: usize) {
        if self.written[at] == 0 {
            return;
        }
        let expected = self.label(at, self.written[at]);
        let what = format!("reading block {}", expected.place);
        let offset = expected.place * BLOCK as u64;
        let (file, block) = (self.file, &mut self.block);
        let done = self
            .disk
            .request(self.index, &what, &self.disk.reads, || file.read_exact_at(&mut block.0, offset));
        if done.is_none() {
            return;
        }
        if let Err(wrong) = self.block.check(expected) {
            self.disk.checks.error(|| format!("{what}: {wrong} for sequence number {}", expected.sequence));
            self.written[at] = 0;
        }
    }
}
