//! A server on AF_VSOCK that checks numbered messages and gives each back.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use guest_init::message;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept, bind, listen, socket};

use crate::memory::Checks;

/// Answers messages without end. What is wrong with one is counted; that a connection ends is not: the host sees it too.
pub fn run(checks: &Checks) {
    let listener = match listener() {
        Ok(listener) => listener,
        Err(error) => return checks.error(|| format!("listening on AF_VSOCK: {error}")),
    };
    loop {
        match accept(listener.as_raw_fd()) {
            Ok(fd) => {
                // SAFETY: the descriptor is new and nobody else's.
                let stream = unsafe { OwnedFd::from_raw_fd(fd) };
                let _ended = answer(checks, File::from(stream));
            }
            Err(error) => {
                checks.error(|| format!("accepting on AF_VSOCK: {error}"));
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

fn listener() -> nix::Result<OwnedFd> {
    let listener = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(listener.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, message::PORT.into()))?;
    listen(&listener, Backlog::new(8)?)?;
    Ok(listener)
}

fn answer(checks: &Checks, mut stream: File) -> io::Result<()> {
    let mut buffer = [0; message::LENGTH];
    for number in 0.. {
        stream.read_exact(&mut buffer)?;
        if let Err(wrong) = message::check(&buffer, number) {
            checks.error(|| wrong);
        }
        stream.write_all(&buffer)?;
        checks.pass();
    }
    Ok(())
}
