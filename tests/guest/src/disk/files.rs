//! A disk with an ext4 file system that is mounted all along.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::mount::{MsFlags, mount, umount};

use super::block::{BLOCK, Block, Label};
use super::{Disk, FILE_WORKERS, next_random, raw};

/// Files that each worker keeps.
const FILES: usize = 16;
/// Blocks of the largest file.
const LARGEST: u64 = 16;
/// One write in so many is followed by the removal of a file.
const REMOVE_EVERY: u64 = 5;

fn directory(disk: &Disk) -> PathBuf {
    PathBuf::from("/mnt").join(&disk.named.device)
}

/// Mounts the file system and starts the workers.
pub fn start(disk: &Arc<Disk>) -> io::Result<Vec<JoinHandle<()>>> {
    let directory = directory(disk);
    fs::create_dir_all(&directory)?;
    let none = None::<&str>;
    mount(Some(&raw::node(&disk.named.device)), &directory, Some("ext4"), MsFlags::empty(), none)?;
    let worker = |index: usize| {
        let disk = Arc::clone(disk);
        let home = directory.join(index.to_string());
        thread::spawn(move || {
            if let Err(error) = fs::create_dir_all(&home) {
                disk.checks.error(|| format!("making {}: {error}", home.display()));
            }
            Worker { disk: &disk, index, home, kept: [None; FILES], block: Block::empty() }.run();
        })
    };
    Ok((0..FILE_WORKERS).map(worker).collect())
}

/// Unmounts the file system.
pub fn unmount(disk: &Disk) {
    let mut result = umount(&directory(disk));
    for _ in 0..50 {
        if result != Err(Errno::EBUSY) {
            break;
        }
        thread::sleep(Duration::from_millis(100));
        result = umount(&directory(disk));
    }
    if let Err(error) = result {
        disk.checks.error(|| format!("unmounting: {error}"));
    }
}

/// A file that is known to be there.
#[derive(Clone, Copy)]
struct Kept {
    sequence: u64,
    blocks: u64,
}

/// One thread and its directory.
struct Worker<'a> {
    disk: &'a Disk,
    index: usize,
    home: PathBuf,
    kept: [Option<Kept>; FILES],
    block: Box<Block>,
}

impl Worker<'_> {
    fn run(&mut self) {
        let mut random = self.index as u64;
        for sequence in 1.. {
            if self.disk.stopped() {
                break;
            }
            let blocks = 1 + next_random(&mut random) % LARGEST;
            self.write(next_random(&mut random) as usize % FILES, Kept { sequence, blocks });
            self.read(next_random(&mut random) as usize % FILES);
            if sequence % REMOVE_EVERY == 0 {
                self.remove(next_random(&mut random) as usize % FILES);
            }
        }
        for slot in 0..FILES {
            self.read(slot);
        }
        self.disk.verified.fetch_add(1, SeqCst);
    }

    fn path(&self, slot: usize) -> PathBuf {
        self.home.join(slot.to_string())
    }

    fn label(&self, slot: usize, sequence: u64, block: u64) -> Label {
        let file = (self.index * FILES + slot) as u64;
        Label { disk: self.disk.index, place: file << 32 | block, sequence }
    }

    /// Writes a file under another name, syncs it and gives it its name.
    fn write(&mut self, slot: usize, new: Kept) {
        let path = self.path(slot);
        let part = self.home.join("part");
        self.kept[slot] = None;
        let what = format!("writing {}", path.display());
        let written = self.disk.request(self.index, &what, &self.disk.writes, || {
            let mut file = File::create(&part)?;
            for block in 0..new.blocks {
                self.block.fill(self.label(slot, new.sequence, block));
                file.write_all(&self.block.0)?;
            }
            Ok(file)
        });
        let Some(file) = written else { return };
        let synced =
            self.disk.request(self.index, &format!("syncing {}", path.display()), &self.disk.syncs, || {
                file.sync_all()?;
                fs::rename(&part, &path)?;
                // What is clean leaves the page cache, so that it is read from the disk.
                Ok(posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
            });
        self.kept[slot] = synced.map(|()| new);
    }

    fn read(&mut self, slot: usize) {
        let Some(kept) = self.kept[slot] else { return };
        let what = format!("reading {}", self.path(slot).display());
        let content = self.disk.request(self.index, &what, &self.disk.reads, || {
            let mut file = File::open(self.path(slot))?;
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
            let mut content = Vec::with_capacity((LARGEST as usize + 1) * BLOCK);
            file.read_to_end(&mut content)?;
            Ok(content)
        });
        let Some(content) = content else { return };
        if content.len() as u64 != kept.blocks * BLOCK as u64 {
            self.disk.checks.error(|| format!("{what}: {} bytes for {} blocks", content.len(), kept.blocks));
            self.kept[slot] = None;
            return;
        }
        for (index, block) in (0..).zip(content.chunks_exact(BLOCK)) {
            self.block.0.copy_from_slice(block);
            if let Err(wrong) = self.block.check(self.label(slot, kept.sequence, index)) {
                let expected = kept.sequence;
                self.disk
                    .checks
                    .error(|| format!("{what} block {index}: {wrong} for sequence number {expected}"));
                self.kept[slot] = None;
                return;
            }
        }
    }

    fn remove(&mut self, slot: usize) {
        if self.kept[slot].take().is_some()
            && let Err(error) = fs::remove_file(self.path(slot))
        {
            self.disk.checks.error(|| format!("removing {}: {error}", self.path(slot).display()));
        }
    }
}
