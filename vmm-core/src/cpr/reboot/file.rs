//! The state file: published whole or not at all, and read with care.
//!
//! 1. Under the file's name is what was there before, or the new file, whole and on disk; never anything else.
//! 2. Room is reserved before the guest stops, so that no full disk is found after.
//! 3. The file is its owner's alone (mode 0600), and one that others could have written or read is not loaded.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, FallocateFlags, OFlag, fallocate, open, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use super::copy::Layout;
use crate::config::Uuid;
use crate::cpr::format::MAX_STATE;
use crate::memory::{Extent, StampLocation, is_in_memory, lock};

/// Why a state file could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The path names no file in a directory.
    #[error("state file {path}: it names no file; give one in a directory that is there")]
    Name {
        /// The path as given.
        path: PathBuf,
    },
    /// There is not enough room.
    #[error("state file {path}: {needed} bytes are needed, {available} are free on its file system")]
    NoRoom {
        /// The path as given.
        path: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes that we may use.
        available: u64,
    },
    /// Something that is no regular file has the name.
    #[error("state file {path}: it is {found}; expected a regular file")]
    NotAFile {
        /// The path as given.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// It is, or may have been made, somebody else's.
    #[error(
        "state file {path}: it belongs to uid {uid} with mode {mode:04o}; expected uid {expected} (or root) with mode 0600"
    )]
    NotOurs {
        /// The path as given.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Its permissions.
        mode: u32,
        /// Our effective uid.
        expected: u32,
    },
    /// Another process looks at it.
    #[error("state file {path}: another process is loading it")]
    InUse {
        /// The path as given.
        path: PathBuf,
    },
    /// It is larger than saved state can be.
    #[error("state file {path}: it has {found} bytes; at most {max} are accepted")]
    TooLarge {
        /// The path as given.
        path: PathBuf,
        /// Its bytes.
        found: u64,
        /// The bound.
        max: u64,
    },
    /// A system call failed.
    #[error("state file {path}: {doing}: {source}")]
    Io {
        /// The path as given.
        path: PathBuf,
        /// What was being done, to what.
        doing: String,
        /// What the kernel answered.
        source: io::Error,
    },
}

fn failed(path: &Path, doing: impl Into<String>, source: impl Into<io::Error>) -> FileError {
    FileError::Io { path: path.to_owned(), doing: doing.into(), source: source.into() }
}

/// A state file in the making, under a name of its own beside the one it will have.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    name: OsString,
    directory: File,
    file: File,
    /// Gone once it has the file's name.
    temporary: Option<OsString>,
}

impl StateFile {
    /// Whether it is on a file system that ends with the kernel.
    pub fn is_in_memory(&self) -> bool {
        is_in_memory(&self.directory)
    }

    /// Begins a state file. What has its name now stays until [`publish`](Self::publish).
    ///
    /// An error where the directory is not there, is none or may not be written, or where the name is something else's
    /// than a file's.
    pub fn create(path: &Path) -> Result<Self, FileError> {
        let name = path.file_name().ok_or_else(|| FileError::Name { path: path.to_owned() })?;
        let parent = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let in_directory = |doing: &str| format!("{doing} directory {}", parent.display());
        let directory = open(parent, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|errno| failed(path, in_directory("opening its"), errno))?;
        match fstatat(&directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(there) if type_of(&there) != SFlag::S_IFREG => {
                return Err(FileError::NotAFile { path: path.to_owned(), found: name_of(type_of(&there)) });
            }
            Ok(_) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(failed(path, "looking at what has its name", errno)),
        }
        let mut temporary = OsString::from(".cpr-");
        temporary.push(Uuid::random().to_string());
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(&directory, temporary.as_os_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(|errno| failed(path, in_directory("creating a file in"), errno))?;
        Ok(Self {
            path: path.to_owned(),
            name: name.to_owned(),
            directory: directory.into(),
            file: file.into(),
            temporary: Some(temporary),
        })
    }

    /// Makes sure that `bytes` can be written, by taking the room for them.
    pub fn reserve(&mut self, bytes: u64) -> Result<(), FileError> {
        let available = self.available()?;
        if bytes > available {
            return Err(self.no_room(bytes, available));
        }
        let taken = match fallocate(&self.file, FallocateFlags::empty(), 0, bytes.max(1) as i64) {
            // A file system that cannot reserve can only be written to.
            Err(Errno::EOPNOTSUPP) => io::copy(&mut io::repeat(0).take(bytes), &mut self.file).map(drop),
            other => other.map_err(io::Error::from),
        };
        taken.map_err(|source| self.write_failed("reserving room for it", bytes, source))
    }

    /// The file, for what is written before [`publish`](Self::publish).
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Writes a page that lies elsewhere to the beginning of the file.
    pub fn write_first(&self, page: &StampLocation) -> Result<(), FileError> {
        let mut bytes = vec![0; page.granularity as usize];
        let written = page.read(&mut bytes).and_then(|()| self.file.write_all_at(&bytes, 0));
        written.map_err(|e| self.write_failed("writing its stamp", page.granularity, e))
    }

    /// Writes the last bytes of the file, which are behind `at` bytes that were written, and gives it its name once it is on
    /// disk. After an error the name is as it was.
    pub fn publish(mut self, at: u64, bytes: &[u8]) -> Result<Published, FileError> {
        let length = at + bytes.len() as u64;
        let written = self.file.write_all_at(bytes, at).and_then(|()| self.file.set_len(length));
        written.map_err(|e| self.write_failed("writing it", length, e))?;
        self.file.sync_all().map_err(|e| self.write_failed("syncing it", length, e))?;
        if let Some(temporary) = &self.temporary {
            renameat(&self.directory, temporary.as_os_str(), &self.directory, self.name.as_os_str())
                .map_err(|errno| failed(&self.path, "giving it its name", errno))?;
        }
        self.temporary = None;
        Ok(Published(self))
    }

    /// Bytes that we may still write to its file system.
    fn available(&self) -> Result<u64, FileError> {
        let stat = fstatvfs(&self.file)
            .map_err(|errno| failed(&self.path, "looking at the room on its file system", errno))?;
        Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
    }

    fn no_room(&self, needed: u64, available: u64) -> FileError {
        FileError::NoRoom { path: self.path.clone(), needed, available }
    }

    /// The error of a write: where room is what lacks, how much.
    pub(super) fn write_failed(&self, doing: &str, needed: u64, source: io::Error) -> FileError {
        let full = matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        match self.available() {
            Ok(available) if full => self.no_room(needed, available),
            _ => failed(&self.path, doing, source),
        }
    }

    fn remove(&self, name: &OsStr) {
        if let Err(error) = unlinkat(&self.directory, name, UnlinkatFlags::NoRemoveDir) {
            tracing::warn!(path = %self.path.display(), name = %name.display(), %error, "file left behind");
        }
    }
}

/// A state file that has its name, which a host that loses power may not know of yet.
#[derive(Debug)]
pub struct Published(StateFile);

impl Published {
    /// Has the name on disk, or takes it away again.
    pub fn keep(self) -> Result<(), FileError> {
        let Self(file) = self;
        file.directory.sync_all().map_err(|e| {
            file.remove(&file.name);
            failed(&file.path, "syncing its directory", e)
        })
    }

    /// Has the name on disk, if that can be, and leaves it where it is: whoever has seen it may have the guest.
    pub fn leave(self) {
        let Self(file) = self;
        if let Err(error) = file.directory.sync_all() {
            tracing::error!(
                "{}: its directory cannot be synced: {error}; the name is there, and may be lost with the host's power",
                file.path.display()
            );
        }
    }
}

impl Drop for StateFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            self.remove(temporary);
        }
    }
}

/// What is in a state file.
#[derive(Debug)]
pub struct Saved {
    /// The state: at most [`MAX_STATE`] bytes.
    pub state: Vec<u8>,
    /// The file, and where it has chunks of RAM, if it has RAM at all.
    pub ram: Option<(File, Range<u64>)>,
}

/// Reads a state file: a regular one of our own (or root's) that nobody else may touch. One with RAM is locked.
pub fn read(path: &Path) -> Result<Saved, FileError> {
    let saved = look_at(path)?;
    // The word in its first page is to be claimed, by one at a time: not each file system shows a word to all hosts at once.
    if let Some((file, _)) = &saved.ram
        && !lock::acquire(file, &Extent::All).map_err(|e| failed(path, "locking it", e))?
    {
        return Err(FileError::InUse { path: path.to_owned() });
    }
    Ok(saved)
}

/// The same, not to be loaded: whoever does that is not in the way, nor kept from it.
pub fn look_at(path: &Path) -> Result<Saved, FileError> {
    // Non-blocking, so that opening a FIFO does not wait for its writer.
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = open(path, flags, Mode::empty()).map_err(|errno| failed(path, "opening it", errno))?;
    let file = File::from(file);
    let metadata = file.metadata().map_err(|e| failed(path, "looking at it", e))?;
    let kind = SFlag::from_bits_truncate(metadata.mode() & SFlag::S_IFMT.bits());
    if kind != SFlag::S_IFREG {
        return Err(FileError::NotAFile { path: path.to_owned(), found: name_of(kind) });
    }
    let (uid, mode, expected) = (metadata.uid(), metadata.mode() & 0o7777, geteuid().as_raw());
    if (uid != expected && uid != 0) || mode & 0o077 != 0 {
        return Err(FileError::NotOurs { path: path.to_owned(), uid, mode, expected });
    }
    let (state, chunks) = contents(&file, metadata.len(), path)?;
    let ram = match chunks {
        Some(chunks) => {
            let file = writable(&file).map_err(|e| failed(path, "opening it for writing", e))?;
            Some((file, chunks))
        }
        None => None,
    };
    Ok(Saved { state, ram })
}

/// Reads the state in memory that the kernel has kept, which is called so; gives it locked, as a file with RAM is.
pub fn state_in(memory: &File, name: &str) -> Result<(File, Vec<u8>), FileError> {
    let path = Path::new(name);
    // A lock is an open file's, and this one may be open for others, too.
    let memory = writable(memory).map_err(|e| failed(path, "opening it again", e))?;
    if !lock::acquire(&memory, &Extent::All).map_err(|e| failed(path, "locking it", e))? {
        return Err(FileError::InUse { path: path.to_owned() });
    }
    let length = memory.metadata().map_err(|e| failed(path, "looking at it", e))?.len();
    let (state, _) = contents(&memory, length, path)?;
    Ok((memory, state))
}

/// The state in a file of so many bytes, and where it has chunks of RAM, if it can have any.
fn contents(file: &File, length: u64, path: &Path) -> Result<(Vec<u8>, Option<Range<u64>>), FileError> {
    let Layout { state: at, chunks } = Layout::of(file, length).map_err(|e| failed(path, "reading it", e))?;
    let found = at.end - at.start;
    if found > MAX_STATE as u64 {
        return Err(FileError::TooLarge { path: path.to_owned(), found, max: MAX_STATE as u64 });
    }
    let mut state = vec![0; found as usize];
    file.read_exact_at(&mut state, at.start).map_err(|e| failed(path, "reading it", e))?;
    Ok((state, chunks))
}

/// The same file, whatever has its name by now.
fn writable(file: &File) -> io::Result<File> {
    File::options().read(true).write(true).open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn type_of(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

fn name_of(kind: SFlag) -> &'static str {
    match kind {
        SFlag::S_IFREG => "a regular file",
        SFlag::S_IFDIR => "a directory",
        SFlag::S_IFLNK => "a symbolic link",
        SFlag::S_IFCHR => "a character device",
        SFlag::S_IFBLK => "a block device",
        SFlag::S_IFIFO => "a FIFO",
        SFlag::S_IFSOCK => "a socket",
        _ => "of an unknown type",
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// The names in a directory.
    fn names(directory: &Path) -> Vec<OsString> {
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    }

    #[test]
    fn what_is_published_is_read_back_and_is_its_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.state");
        fs::write(&path, "the old file, longer than the new one").unwrap();
        let mut file = StateFile::create(&path).unwrap();
        file.reserve(1 << 20).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"the old file, longer than the new one");
        file.publish(0, b"state").unwrap().keep().unwrap();
        assert_eq!(read(&path).unwrap().state, b"state");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(names(directory.path()), ["web.state"]);
    }

    #[test]
    fn a_file_that_is_not_published_leaves_nothing_and_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.state");
        fs::write(&path, "old").unwrap();
        let mut file = StateFile::create(&path).unwrap();
        file.reserve(4096).unwrap();
        assert_eq!(names(directory.path()).len(), 2);
        drop(file);
        assert_eq!(names(directory.path()), ["web.state"]);
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }

    #[test]
    fn a_publish_that_fails_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.state");
        let file = StateFile::create(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let error = file.publish(0, b"state").unwrap_err().to_string();
        assert!(error.contains("giving it its name"), "{error}");
        assert_eq!(names(directory.path()), ["web.state"]);
    }

    #[test]
    fn a_full_disk_is_found_before_and_both_sizes_named() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = StateFile::create(&directory.path().join("web.state")).unwrap();
        let error = file.reserve(1 << 60).unwrap_err();
        assert!(matches!(error, FileError::NoRoom { needed, available, .. }
            if needed == 1 << 60 && available < needed));
    }

    #[test]
    fn a_directory_that_is_missing_or_none_and_a_name_that_is_none_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let refusal = |path: &Path| StateFile::create(path).unwrap_err().to_string();
        let missing = refusal(&directory.path().join("gone/web.state"));
        assert!(missing.contains("opening its directory") && missing.contains("No such file"), "{missing}");
        fs::write(directory.path().join("plain"), "").unwrap();
        assert!(refusal(&directory.path().join("plain/web.state")).contains("Not a directory"));
        assert!(refusal(directory.path()).contains("it is a directory; expected a regular file"));
        assert!(refusal(Path::new("/dev/null")).contains("it is a character device"));
        assert!(refusal(Path::new("/")).contains("it names no file"));
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_named() {
        // Not even root makes files in sysfs.
        let error = StateFile::create(Path::new("/sys/kernel/web.state")).unwrap_err().to_string();
        assert!(error.contains("creating a file in directory /sys/kernel"), "{error}");
    }

    #[test]
    fn a_file_that_others_could_touch_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.state");
        fs::write(&path, "state").unwrap();
        for mode in [0o640, 0o604, 0o620, 0o602] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("mode {mode:04o}")), "{error}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read(&path).unwrap().state, b"state");
        if geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
            assert!(read(&path).unwrap_err().to_string().contains("belongs to uid 65534"));
        }
    }

    #[test]
    fn what_is_no_file_or_too_large_a_one_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        assert!(read(&fifo).unwrap_err().to_string().contains("it is a FIFO"));
        assert!(read(directory.path()).unwrap_err().to_string().contains("it is a directory"));
        assert!(read(&directory.path().join("gone")).unwrap_err().to_string().contains("opening it"));
        let large = StateFile::create(&directory.path().join("large")).unwrap();
        large.file.set_len(MAX_STATE as u64 + 1).unwrap();
        let path = directory.path().join(large.temporary.as_ref().unwrap());
        assert!(matches!(read(&path).unwrap_err(), FileError::TooLarge { .. }));
    }
}
