//! The lock on a backing that has a path.
//!
//! It is an open-file-description lock on the file, or on a part of it, so it goes where the descriptor goes: over SCM_RIGHTS
//! and `execve`, and away when the last duplicate is closed.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;

use nix::fcntl::{FcntlArg, fcntl};

use crate::config::ByteSize;

/// What of a file is locked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extent {
    /// All, up to its end, however far that moves.
    All,
    /// From one offset to another.
    Part(Range<u64>),
}

impl Extent {
    fn as_flock(&self, kind: i32) -> libc::flock {
        let (l_start, l_len) = match self {
            Self::All => (0, 0),
            Self::Part(range) => (range.start as i64, (range.end - range.start) as i64),
        };
        libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start, l_len, l_pid: 0 }
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Part(range) => write!(f, "{} to {}", ByteSize(range.start), ByteSize(range.end)),
        }
    }
}

/// Takes the lock without waiting. `Ok(false)` if another open file description holds some of it.
pub(crate) fn acquire(file: &File, extent: &Extent) -> io::Result<bool> {
    match set(file, extent, libc::F_WRLCK) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        other => other.map(|()| true),
    }
}

/// Lets go of the lock, for every duplicate of the descriptor.
pub(crate) fn release(file: &File, extent: &Extent) -> io::Result<()> {
    set(file, extent, libc::F_UNLCK)
}

/// What another open file description holds that is in the way of a lock, if one does.
pub(crate) fn held(file: &File, extent: &Extent) -> io::Result<Option<Extent>> {
    let mut lock = extent.as_flock(libc::F_WRLCK);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    let start = lock.l_start as u64;
    Ok((i32::from(lock.l_type) != libc::F_UNLCK).then(|| match lock.l_len as u64 {
        0 => Extent::All,
        length => Extent::Part(start..start.saturating_add(length)),
    }))
}

fn set(file: &File, extent: &Extent, kind: i32) -> io::Result<()> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&extent.as_flock(kind)))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_exclude_what_they_overlap_and_nothing_else() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.path()).unwrap();
        let (first, second) = (open(), open());
        let part = |range| Extent::Part(range);
        assert!(acquire(&first, &part(4..8)).unwrap());
        for (wanted, free) in
            [(part(0..4), true), (part(8..9), true), (part(7..9), false), (Extent::All, false)]
        {
            assert_eq!(acquire(&second, &wanted).unwrap(), free, "{wanted}");
            release(&second, &Extent::All).unwrap();
        }
        assert_eq!(held(&second, &Extent::All).unwrap(), Some(part(4..8)));
        assert_eq!(held(&first, &Extent::All).unwrap(), None);
        release(&first, &part(4..8)).unwrap();
        assert!(acquire(&second, &Extent::All).unwrap());
        assert_eq!(held(&first, &part(4..8)).unwrap(), Some(Extent::All));
    }
}
