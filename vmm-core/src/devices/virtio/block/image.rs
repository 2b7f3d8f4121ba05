//! A disk's image: a raw file or a block device, opened and locked.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::config::BlockConfig;
use super::identity::ImageIdentity;
use super::lock::{self, Holder};
use super::probe::{self, Alignment, ImageKind};
use super::request::SECTOR;
use crate::cpr::fds::{FdError, FdName, FdTable};

/// Why an image could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A system call failed.
    #[error("image {}: {doing}: {source}", path.display())]
    Io {
        /// The image.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// No disk can be made of it.
    #[error("image {}: found {found}; expected {expected}", path.display())]
    Unfit {
        /// The image.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// Another user has it.
    #[error("image {} is in use by {holder}; stop that, or give both readonly=on", path.display())]
    InUse {
        /// The image.
        path: PathBuf,
        /// Who.
        holder: Holder,
    },
    /// The host's kernel has it: mounted, or part of another device.
    #[error("image {} is in use by the host (mounted, swap, or part of another device)", path.display())]
    Claimed {
        /// The image.
        path: PathBuf,
    },
    /// It is not what it was when the guest's state was saved.
    #[error(
        "image {} is not what it was when the guest was saved: {}; a guest that goes on would see its file systems \
         corrupt",
        path.display(), differences.join(", ")
    )]
    Changed {
        /// The image.
        path: PathBuf,
        /// What differs, each with both values.
        differences: Vec<String>,
    },
}

impl ImageError {
    fn io<E: Into<io::Error>>(path: &Path, doing: &'static str) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, doing, source: source.into() }
    }
}

/// What I/O is done on.
#[derive(Debug, Clone)]
pub struct Backing {
    /// The open image.
    pub file: Arc<File>,
    /// What it is.
    pub kind: ImageKind,
    /// What I/O must be aligned to; `None` where it goes through the page cache.
    pub direct: Option<Alignment>,
}

/// A disk's image, opened and locked. The lock is let go with the last duplicate of the descriptor.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    backing: Backing,
    read_only: bool,
    size: u64,
    block_size: u32,
    discard: bool,
}

impl Image {
    /// Opens and locks the image that a configuration names. Nothing of it is changed, its times included.
    pub fn open(config: &BlockConfig) -> Result<Self, ImageError> {
        let path = config.path.as_path();
        let opening = ImageError::io(path, "opening it");
        // Without waiting: the path may be a FIFO's.
        let mut flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let is_device = match fs::metadata(path) {
            Ok(stat) => stat.file_type().is_block_device(),
            Err(e) => return Err(opening(e)),
        };
        if config.direct {
            flags |= libc::O_DIRECT;
        }
        if is_device && !config.readonly {
            flags |= libc::O_EXCL;
        }
        let opened = OpenOptions::new().read(true).write(!config.readonly).custom_flags(flags).open(path);
        let file = opened.map_err(|e| match e.raw_os_error() {
            Some(libc::EBUSY) if is_device => ImageError::Claimed { path: path.into() },
            Some(libc::EINVAL) if config.direct => ImageError::Unfit {
                path: path.into(),
                found: "a file system without direct I/O".into(),
                expected: "one with it, or direct=off".into(),
            },
            _ => opening(e),
        })?;
        Self::of(file, config)
    }

    /// Takes over a received descriptor after checking that it is what `config` says, and that the lock came with it.
    pub fn adopt(name: &FdName, fd: OwnedFd, config: &BlockConfig) -> Result<Self, FdError> {
        let file = File::from(fd);
        let wrong = |found: &str, expected: &str| {
            Err(FdError::Wrong { name: name.clone(), found: found.into(), expected: expected.into() })
        };
        let flags = fcntl(&file, FcntlArg::F_GETFL).map_err(|e| FdError::Io {
            name: name.clone(),
            doing: "reading its flags",
            source: e.into(),
        })?;
        let flags = OFlag::from_bits_retain(flags);
        match (flags & OFlag::O_ACCMODE, config.readonly) {
            (OFlag::O_RDONLY, true) | (OFlag::O_RDWR, false) => {}
            (_, true) => return wrong("open for writing", "open for reading only, as readonly=on says"),
            (_, false) => return wrong("not open for reading and writing", "both, as readonly=off says"),
        }
        match (flags.contains(OFlag::O_DIRECT), config.direct) {
            (true, false) => {
                return wrong("open for direct I/O", "I/O through the page cache, as direct=off says");
            }
            (false, true) => {
                return wrong("open for I/O through the page cache", "direct I/O, as direct=on says");
            }
            _ => {}
        }
        Self::of(file, config).map_err(|error| FdError::Wrong {
            name: name.clone(),
            found: error.to_string(),
            expected: format!("the locked image {}", config.path.display()),
        })
    }

    /// Looks at an open image and locks it.
    fn of(file: File, config: &BlockConfig) -> Result<Self, ImageError> {
        let path = config.path.as_path();
        let unfit = |found: String, expected: &str| {
            Err(ImageError::Unfit { path: path.into(), found, expected: expected.into() })
        };
        let looking = "looking at it";
        let Some(kind) = probe::kind(&file).map_err(ImageError::io(path, looking))? else {
            return unfit("something else".into(), "a regular file or a block device");
        };
        // The lock first: the rest may change while another has it.
        let locking = ImageError::io(path, "locking it");
        if let Some(holder) = lock::acquire(&file, !config.readonly).map_err(locking)? {
            return Err(ImageError::InUse { path: path.into(), holder });
        }
        set_waiting(&file).map_err(ImageError::io(path, "making it wait for I/O"))?;
        let size = probe::size(&file, kind).map_err(ImageError::io(path, "reading its size"))?;
        let direct = if config.direct {
            Some(probe::alignment(&file, kind).map_err(ImageError::io(path, "aligning direct I/O"))?)
        } else {
            None
        };
        let (block_size, discard) = match kind {
            ImageKind::File => (direct.map_or(512, |direct| direct.offset.max(512)), true),
            ImageKind::BlockDevice => {
                if !config.readonly && probe::is_read_only(&file).map_err(ImageError::io(path, looking))? {
                    return unfit("a block device that is read-only".into(), "readonly=on");
                }
                let block = probe::logical_block(&file).map_err(ImageError::io(path, looking))?;
                (block, probe::can_discard(&file).map_err(ImageError::io(path, looking))?)
            }
        };
        if size == 0 || !size.is_multiple_of(u64::from(block_size)) {
            let expected = format!("a multiple of its block of {block_size} bytes");
            return unfit(format!("a size of {size} bytes"), &expected);
        }
        let backing = Backing { file: Arc::new(file), kind, direct };
        let discard = discard && !config.readonly;
        Ok(Self { path: path.into(), backing, read_only: config.readonly, size, block_size, discard })
    }

    /// Registers a duplicate of the descriptor, and with it the lock.
    pub fn register(&self, name: FdName, fds: &mut FdTable) -> Result<(), FdError> {
        fds.insert_dup(name, self.backing.file.as_fd())
    }

    /// Writes everything to the medium, times too, and says which image it is. For saving: nothing may be in flight.
    ///
    /// Where that takes longer than `within` it is an error, and goes on all the same: the next time there is less of it.
    pub fn settle(&self, within: Duration) -> Result<ImageIdentity, ImageError> {
        self.settle_by(within, File::sync_all)
    }

    /// The same, by another way to sync.
    fn settle_by(
        &self,
        within: Duration,
        sync: impl FnOnce(&File) -> io::Result<()> + Send + 'static,
    ) -> Result<ImageIdentity, ImageError> {
        let (done, synced) = mpsc::channel();
        let file = Arc::clone(&self.backing.file);
        let syncing = |source| ImageError::io(&self.path, "syncing it")(source);
        // A system call that nothing interrupts: only another thread can give up waiting for it.
        let thread = thread::Builder::new().name("sync".into());
        let task = move || {
            let result = sync(&file);
            // Before it is said: whoever hears it may count on the lock going with the image.
            drop(file);
            // Nobody listens any more if it was late.
            let _ = done.send(result);
        };
        thread.spawn(task).map_err(syncing)?;
        let late = |_| {
            let what = format!("the host's disk has not done it within {} ms", within.as_millis());
            Err(io::Error::new(io::ErrorKind::TimedOut, what))
        };
        synced.recv_timeout(within).unwrap_or_else(late).map_err(syncing)?;
        self.identity()
    }

    /// Which image it is.
    pub fn identity(&self) -> Result<ImageIdentity, ImageError> {
        ImageIdentity::of(&self.backing.file, self.backing.kind)
            .map_err(ImageError::io(&self.path, "reading its identity"))
    }

    /// Refuses an image that is not what was saved: changed, resized or replaced. For one that was opened again.
    pub fn verify(&self, saved: &ImageIdentity) -> Result<(), ImageError> {
        self.refuse(saved.differences(&self.identity()?))
    }

    /// Refuses another image than the one that was saved, whatever was written to it. For one that was adopted.
    pub fn recognize(&self, saved: &ImageIdentity) -> Result<(), ImageError> {
        self.refuse(saved.replacements(&self.identity()?))
    }

    /// Why its path does not lead to it any more; `None` if it does.
    pub fn lost(&self) -> Option<String> {
        let name = |stat: &fs::Metadata| match self.backing.kind {
            ImageKind::File => (stat.is_file(), stat.dev(), stat.ino()),
            ImageKind::BlockDevice => (stat.file_type().is_block_device(), stat.rdev(), 0),
        };
        let found = match (fs::metadata(&self.path), self.backing.file.metadata()) {
            (Ok(there), Ok(here)) if name(&there) == name(&here) => return None,
            (Ok(_), Ok(_)) => "another one is there".to_owned(),
            (Err(error), _) | (_, Err(error)) => error.to_string(),
        };
        let way_out = "put it back (a hard link will do): the guest is loaded from its path";
        Some(format!("image {} is no longer where it was: {found}; {way_out}", self.path.display()))
    }

    fn refuse(&self, differences: Vec<String>) -> Result<(), ImageError> {
        if differences.is_empty() {
            return Ok(());
        }
        Err(ImageError::Changed { path: self.path.clone(), differences })
    }

    /// What I/O is done on.
    pub fn backing(&self) -> &Backing {
        &self.backing
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its capacity in sectors of 512 bytes.
    pub fn sectors(&self) -> u64 {
        self.size / SECTOR
    }

    /// The logical block that the guest is to use, in bytes; a power of two, at least 512.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Whether the guest may only read.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether a discard gives room back to the host. Writing zeroes is always possible where writing is.
    pub fn can_discard(&self) -> bool {
        self.discard
    }
}

/// O_NONBLOCK is for opening only: with it, io_uring answers EAGAIN where it should wait.
fn set_waiting(file: &File) -> nix::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    fcntl(file, FcntlArg::F_SETFL(flags & !OFlag::O_NONBLOCK)).map(drop)
}

#[cfg(test)]
#[path = "image_tests.rs"]
pub(crate) mod tests;
