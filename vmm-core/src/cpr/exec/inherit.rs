//! Descriptors over `execve`: close-on-exec cleared at the last moment, set again by the new image.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use memfd::{FileSeal, MemfdOptions};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::cpr::fds::{FdError, FdName, FdTable};

/// The most bytes of state that are read back.
const MAX_STATE: u64 = 64 << 20;
const SEALS: [FileSeal; 4] =
    [FileSeal::SealWrite, FileSeal::SealShrink, FileSeal::SealGrow, FileSeal::SealSeal];

/// Whether a descriptor is closed by `execve`.
pub fn set_close_on_exec(fd: BorrowedFd<'_>, close: bool) -> io::Result<()> {
    let flags = if close { FdFlag::FD_CLOEXEC } else { FdFlag::empty() };
    Ok(fcntl(fd, FcntlArg::F_SETFD(flags)).map(drop)?)
}

/// Puts the state in a memfd that nobody can change any more.
pub fn seal_state(state: &[u8]) -> io::Result<OwnedFd> {
    let memfd = MemfdOptions::new().allow_sealing(true).create("cpr.state").map_err(io::Error::other)?;
    memfd.as_file().write_all(state)?;
    memfd.add_seals(&SEALS).map_err(io::Error::other)?;
    Ok(memfd.into_file().into())
}

/// Reads a sealed state back. The descriptor stays open.
pub fn read_state(state: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let refused = |why: &str| io::Error::other(format!("the state's descriptor {why}"));
    let memfd = memfd::Memfd::try_from_file(File::from(state.try_clone_to_owned()?))
        .map_err(|_| refused("is no sealable memfd"))?;
    let seals = memfd.seals().map_err(io::Error::other)?;
    if SEALS.iter().any(|seal| !seals.contains(seal)) {
        return Err(refused("is not sealed: somebody could still change it"));
    }
    let mut file = memfd.into_file();
    let length = file.metadata()?.len();
    if length > MAX_STATE {
        return Err(refused(&format!("holds {length} bytes; at most {MAX_STATE} are taken")));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// An inherited descriptor, if the number is one.
pub fn inherited<'a>(number: RawFd) -> io::Result<BorrowedFd<'a>> {
    if number <= 2 {
        return Err(io::Error::other(format!("descriptor {number} is a standard stream")));
    }
    // SAFETY: F_GETFD takes no pointer; it tells whether the number is an open descriptor.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open (seen just now); nothing in this process closes inherited descriptors before the guest is
    // claimed, and the borrow does not outlive that (`Inherited::close`).
    Ok(unsafe { BorrowedFd::borrow_raw(number) })
}

/// Inherited descriptors: duplicates to work with, originals kept open for a way back.
#[derive(Debug)]
pub struct Inherited {
    numbers: Vec<RawFd>,
}

impl Inherited {
    /// Duplicates (close-on-exec) every descriptor that the state names.
    pub fn adopt(numbers: &[(FdName, RawFd)]) -> Result<(Self, FdTable), FdError> {
        let mut table = FdTable::new();
        for (name, number) in numbers {
            let io = |source| FdError::Io { name: name.clone(), doing: "finding it after the exec", source };
            table.insert_dup(name.clone(), inherited(*number).map_err(io)?)?;
        }
        Ok((Self { numbers: numbers.iter().map(|(_, number)| *number).collect() }, table))
    }

    /// Closes the originals: there is no way back any more.
    pub fn close(self) {
        for number in self.numbers {
            close(number);
        }
    }
}

/// Closes an inherited descriptor.
pub fn close(number: RawFd) {
    // SAFETY: the number was inherited over the exec and is owned by nothing in this process but the caller's record of it.
    unsafe { libc::close(number) };
}

/// Clears close-on-exec on all of them, or on none.
pub fn keep_open(fds: &FdTable, more: &[BorrowedFd<'_>]) -> io::Result<()> {
    let all = || fds.iter().map(|(_, fd)| fd.as_fd()).chain(more.iter().copied());
    let kept = all().try_for_each(|fd| set_close_on_exec(fd, false));
    if kept.is_err() {
        close_on_exec_again(all());
    }
    kept
}

/// Undoes [`keep_open`].
pub fn close_on_exec_again<'a>(fds: impl Iterator<Item = BorrowedFd<'a>>) {
    for fd in fds {
        if let Err(error) = set_close_on_exec(fd, true) {
            tracing::warn!("setting close-on-exec again: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_state_is_read_back_and_an_unsealed_one_refused() {
        let sealed = seal_state(b"state").unwrap();
        assert_eq!(read_state(sealed.as_fd()).unwrap(), b"state");
        let open = MemfdOptions::new().allow_sealing(true).create("x").unwrap().into_file();
        assert!(read_state(open.as_fd()).unwrap_err().to_string().contains("not sealed"));
        let null = File::open("/dev/null").unwrap();
        assert!(read_state(null.as_fd()).unwrap_err().to_string().contains("no sealable memfd"));
    }

    #[test]
    fn a_number_that_is_no_descriptor_is_refused_by_name() {
        let error = Inherited::adopt(&[(FdName::new("pc.ram", 0), 999_999)]).unwrap_err();
        assert!(error.to_string().contains("'pc.ram' #0"), "{error}");
    }
}
