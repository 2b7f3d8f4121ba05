//! A guest's memory over a socket: one byte, and its descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// The most descriptors that go at once.
const MOST: usize = 64;

/// Sends them. A peer that is gone is an error, and no signal.
pub(super) fn send(to: &UnixStream, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let numbers: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let (bytes, rights) = ([IoSlice::new(b"\n")], [ControlMessage::ScmRights(&numbers)]);
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    sendmsg::<()>(to.as_raw_fd(), &bytes, &rights, flags, None)?;
    Ok(())
}

/// Receives them, close-on-exec. None: the peer is gone.
pub(super) fn receive(from: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut space = cmsg_space!([RawFd; MOST]);
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let message = recvmsg::<()>(from.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut files = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            // SAFETY: the kernel has just made these descriptors for us; nothing else owns them.
            files.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok(files)
}
