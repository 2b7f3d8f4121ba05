//! Guest memory whose pages are put in while they are waited for (`userfaultfd(2)`, `ioctl_userfaultfd(2)`).
//!
//! 1. Whoever touches a page that is not there waits until it is put in: a vCPU, a thread, and the kernel on behalf of either.
//! 2. A page is put in whole, and once: one that is there already is an error, for nobody could have put it there.
//! 3. What is let go of, or dropped, keeps nobody waiting: pages that are missing then are zeros.

mod calls;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use self::calls::{
    ADDRESS, API, Api, Copy, EVENT_PAGEFAULT, MESSAGE, MISSING_SHMEM, MODE_MISSING, POISON, Range, Register,
    Zero, raw,
};
use super::open::PAGE_SIZE;
use super::{GuestRam, MemoryError, RAM};

/// A part of the RAM as it is mapped.
#[derive(Debug)]
struct Window {
    offset: u64,
    len: u64,
    host: u64,
}

/// The pages of a guest's RAM that are not there, and whoever waits for one.
#[derive(Debug)]
pub struct MissingPages {
    /// What is read from it and asked of it is about the mapping alone, which the kernel knows to be this one's.
    userfaultfd: File,
    windows: Vec<Window>,
}

impl MissingPages {
    /// Of RAM that nobody has touched, in this process alone. An error where the kernel or this process's rights are not up to it; nothing
    /// is changed then.
    pub fn of(ram: &GuestRam) -> Result<Self, MemoryError> {
        let io = |doing: &str| MemoryError::io(RAM, doing.to_owned());
        let userfaultfd = File::from(calls::open().map_err(io(
            "userfaultfd (it takes CAP_SYS_PTRACE, access to /dev/userfaultfd, or vm.unprivileged_userfaultfd=1)",
        ))?);
        let mut asked = Api { api: API, features: 0, ioctls: 0 };
        // SAFETY: a structure of the call's own, for as long as it takes.
        unsafe { raw::api(userfaultfd.as_raw_fd(), &raw mut asked) }
            .map_err(|error| io("UFFDIO_API")(error.into()))?;
        if asked.features & (MISSING_SHMEM | POISON) != MISSING_SHMEM | POISON {
            let older = io::Error::other(format!(
                "it has the features {:#x}; expected those of Linux 6.6",
                asked.features
            ));
            return Err(io("userfaultfd")(older));
        }
        let windows = ram.memory().iter().filter_map(|region| {
            let host = region.get_host_address(MemoryRegionAddress(0)).ok()? as u64;
            Some(Window { offset: region.file_offset()?.start(), len: region.len(), host })
        });
        let pages = Self { userfaultfd, windows: windows.collect() };
        for window in &pages.windows {
            let range = Range { start: window.host, len: window.len };
            let mut register = Register { range, mode: MODE_MISSING, ioctls: 0 };
            // SAFETY: as above; the range is a mapping of guest memory, in which a thread may wait at any time.
            unsafe { raw::register(pages.userfaultfd.as_raw_fd(), &raw mut register) }
                .map_err(|error| io("UFFDIO_REGISTER")(error.into()))?;
        }
        Ok(pages)
    }

    /// Where in the RAM a page is waited for, if one is that nobody was told of.
    pub fn next(&self) -> io::Result<Option<u64>> {
        let mut message = [0; MESSAGE];
        loop {
            match (&self.userfaultfd).read(&mut message) {
                Ok(MESSAGE) if message[0] == EVENT_PAGEFAULT => {}
                Ok(_) => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            let mut address = [0; 8];
            address.copy_from_slice(&message[ADDRESS]);
            let address = u64::from_ne_bytes(address) / PAGE_SIZE * PAGE_SIZE;
            let inside = |window: &&Window| address.wrapping_sub(window.host) < window.len;
            if let Some(window) = self.windows.iter().find(inside) {
                return Ok(Some(window.offset + (address - window.host)));
            }
        }
    }

    /// Waits until a page is waited for, or until `end` can be read: `false`.
    pub fn wait(&self, end: BorrowedFd<'_>) -> io::Result<bool> {
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = [readable(end), readable(self.userfaultfd.as_fd())];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(!fds[0].any().unwrap_or(false)),
            Err(error) => Err(error.into()),
        }
    }

    /// Puts whole pages in, in that place of the RAM; whoever waits for one goes on.
    pub fn put(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.windowed(offset, bytes.len() as u64, |host, at, len| {
            let mut done = 0;
            while done < len {
                let from = bytes[(at + done) as usize..].as_ptr() as u64;
                let mut copy = Copy { to: host + done, from, len: len - done, mode: 0, done: 0 };
                // SAFETY: as above; so many bytes are there from the slice's place on (`windowed`).
                let copied = unsafe { raw::copy(self.userfaultfd.as_raw_fd(), &raw mut copy) };
                done += u64::try_from(copy.done).unwrap_or(0);
                match copied {
                    Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })
    }

    /// Makes a page zeros, if it is missing still, and lets whoever waits for it go on.
    pub fn put_zeros(&self, offset: u64) -> io::Result<()> {
        self.windowed(offset, PAGE_SIZE, |host, _, len| {
            loop {
                let mut zero = Zero { range: Range { start: host, len }, mode: 0, done: 0 };
                let mut range = Range { start: host, len };
                let fd = self.userfaultfd.as_raw_fd();
                // SAFETY: as above.
                match unsafe { raw::zeropage(fd, &raw mut zero) } {
                    Ok(_) => return Ok(()),
                    Err(Errno::EAGAIN | Errno::EINTR) => {}
                    // SAFETY: as above.
                    Err(Errno::EEXIST) => return unsafe { raw::wake(fd, &raw mut range) }.map(drop),
                    Err(error) => return Err(error),
                }
            }
        })
    }

    /// Keeps nobody waiting any more, now or later: pages that are missing are zeros.
    pub fn release(&self) -> io::Result<()> {
        for window in &self.windows {
            let mut range = Range { start: window.host, len: window.len };
            // SAFETY: as above.
            unsafe { raw::unregister(self.userfaultfd.as_raw_fd(), &raw mut range) }?;
        }
        Ok(())
    }

    /// Does something with each part of a stretch of RAM that is mapped in one piece: told where that is, how far in the stretch, how long.
    fn windowed(
        &self,
        offset: u64,
        len: u64,
        one: impl Fn(u64, u64, u64) -> Result<(), Errno>,
    ) -> io::Result<()> {
        for window in &self.windows {
            let (from, to) = (offset.max(window.offset), (offset + len).min(window.offset + window.len));
            if from < to {
                one(window.host + (from - window.offset), from - offset, to - from)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
