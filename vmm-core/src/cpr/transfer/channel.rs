//! A channel: frames over a UNIX socket, every wait with a deadline and open to cancelling.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use zerocopy::IntoBytes;

use super::frame::{Frame, FrameError, FrameHeader, HEADER_LEN, MAX_FRAME_FDS};

/// How much is read at once: what a lying length can make us allocate ahead of the bytes.
const CHUNK: usize = 256 << 10;

/// Why a wait on the peer ended without what was waited for.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The peer is gone.
    #[error("the peer closed the channel")]
    Closed,
    /// The deadline passed.
    #[error("no answer before the deadline")]
    Deadline,
    /// Somebody cancelled.
    #[error("cancelled")]
    Cancelled,
    /// What came is no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A system call failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<Errno> for ChannelError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::EPIPE | Errno::ECONNRESET => Self::Closed,
            errno => Self::Io(errno.into()),
        }
    }
}

/// One end of a channel.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    cancel: Option<OwnedFd>,
    sent: u32,
    received: u32,
}

impl Channel {
    /// Over a connected socket. When `cancel` (an eventfd) becomes readable, every wait ends.
    pub fn new(stream: UnixStream, cancel: Option<OwnedFd>) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, cancel, sent: 0, received: 0 })
    }

    /// Waits until the socket is ready for `events`.
    fn wait(&self, events: PollFlags, deadline: Instant) -> Result<(), ChannelError> {
        wait_ready(self.stream.as_fd(), events, self.cancel.as_ref().map(AsFd::as_fd), deadline)
    }

    /// Sends a message with its descriptors.
    pub fn send(
        &mut self,
        kind: u16,
        payload: &[u8],
        fds: &[RawFd],
        deadline: Instant,
    ) -> Result<(), ChannelError> {
        if payload.len() > super::frame::MAX_PAYLOAD {
            return Err(FrameError::TooLong { found: payload.len() }.into());
        }
        if fds.len() > MAX_FRAME_FDS {
            return Err(FrameError::Descriptors { found: fds.len(), expected: MAX_FRAME_FDS }.into());
        }
        let header = FrameHeader::new(kind, self.sent, payload, fds.len());
        let rights = [ControlMessage::ScmRights(fds)];
        let mut rights: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
        let mut done = 0;
        while done < HEADER_LEN + payload.len() {
            let head = &header.as_bytes()[done.min(HEADER_LEN)..];
            let rest = &payload[done.saturating_sub(HEADER_LEN)..];
            let parts = [IoSlice::new(head), IoSlice::new(rest)];
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            match sendmsg::<()>(self.stream.as_raw_fd(), &parts, rights, flags, None) {
                Ok(sent) => {
                    done += sent;
                    rights = &[];
                }
                Err(Errno::EAGAIN) => self.wait(PollFlags::POLLOUT, deadline)?,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.sent = self.sent.wrapping_add(1);
        Ok(())
    }

    /// Receives the next message.
    pub fn receive(&mut self, deadline: Instant) -> Result<Frame, ChannelError> {
        let (header, fds) = self.receive_header(deadline)?;
        let length = header.length.get() as usize;
        let mut payload = Vec::new();
        while payload.len() < length {
            let start = payload.len();
            payload.resize(length.min(start + CHUNK), 0);
            let read = self.read_some(&mut payload[start..], deadline)?;
            payload.truncate(start + read);
        }
        header.check_payload(&payload)?;
        let sequence = header.sequence.get();
        if sequence != self.received {
            return Err(FrameError::Sequence { found: sequence, expected: self.received }.into());
        }
        self.received = self.received.wrapping_add(1);
        Ok(Frame { kind: header.kind.get(), sequence, payload, fds })
    }

    fn receive_header(&mut self, deadline: Instant) -> Result<(FrameHeader, Vec<OwnedFd>), ChannelError> {
        let mut bytes = [0; HEADER_LEN];
        let mut fds = Vec::new();
        let mut done = 0;
        while done < HEADER_LEN {
            let (read, more) = receive_with_fds(self.stream.as_fd(), &mut bytes[done..])?;
            fds.extend(more);
            match read {
                Some(0) => return Err(ChannelError::Closed),
                Some(read) => done += read,
                None => self.wait(PollFlags::POLLIN, deadline)?,
            }
        }
        let header = FrameHeader::parse(&bytes)?;
        let expected = usize::from(header.fds.get());
        if fds.len() != expected {
            return Err(FrameError::Descriptors { found: fds.len(), expected }.into());
        }
        Ok((header, fds))
    }

    fn read_some(&mut self, buffer: &mut [u8], deadline: Instant) -> Result<usize, ChannelError> {
        loop {
            match nix::sys::socket::recv(self.stream.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return Err(ChannelError::Closed),
                Ok(read) => return Ok(read),
                Err(Errno::EAGAIN) => self.wait(PollFlags::POLLIN, deadline)?,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// Waits until `fd` is ready for `events`, the deadline has passed, or `cancel` is readable.
pub fn wait_ready(
    fd: BorrowedFd<'_>,
    events: PollFlags,
    cancel: Option<BorrowedFd<'_>>,
    deadline: Instant,
) -> Result<(), ChannelError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX);
        let mut polled = [PollFd::new(fd, events), PollFd::new(cancel.unwrap_or(fd), PollFlags::POLLIN)];
        let polled = if cancel.is_some() { &mut polled[..] } else { &mut polled[..1] };
        match poll(polled, timeout) {
            Ok(0) if deadline <= Instant::now() => return Err(ChannelError::Deadline),
            Ok(_) if cancel.is_some() && polled[1].any() == Some(true) => {
                return Err(ChannelError::Cancelled);
            }
            Ok(_) if polled[0].any() == Some(true) => return Ok(()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Whether somebody cancelled, by this eventfd.
pub fn was_cancelled(cancel: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(cancel, PollFlags::POLLIN)];
    matches!(poll(&mut polled, PollTimeout::ZERO), Ok(1..))
}

/// Reads what is there, with its descriptors (close-on-exec). `None` where nothing is there yet.
fn receive_with_fds(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> Result<(Option<usize>, Vec<OwnedFd>), ChannelError> {
    let mut space = cmsg_space!([RawFd; MAX_FRAME_FDS]);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags) {
        Err(Errno::EAGAIN | Errno::EINTR) => return Ok((None, Vec::new())),
        message => message?,
    };
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            // SAFETY: the kernel has just made these descriptors for us; nothing else owns them.
            fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    if message.flags.contains(MsgFlags::MSG_CTRUNC) {
        return Err(FrameError::Descriptors { found: fds.len(), expected: MAX_FRAME_FDS }.into());
    }
    Ok((Some(message.bytes), fds))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[test]
    fn a_message_and_its_descriptors_arrive_whole() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut a, mut b) = (Channel::new(a, None).unwrap(), Channel::new(b, None).unwrap());
        let payload: Vec<u8> = (0..600_000u32).map(|i| i as u8).collect();
        let null = std::fs::File::open("/dev/null").unwrap();
        let sender = std::thread::spawn({
            let payload = payload.clone();
            move || {
                a.send(7, &payload, &[null.as_raw_fd(); 200], soon()).unwrap();
                a.send(8, b"", &[], soon()).unwrap();
            }
        });
        let first = b.receive(soon()).unwrap();
        let second = b.receive(soon()).unwrap();
        sender.join().unwrap();
        assert_eq!((first.kind, first.payload, first.fds.len()), (7, payload, 200));
        assert_eq!((second.kind, second.fds.len()), (8, 0));
    }

    #[test]
    fn a_silent_peer_meets_the_deadline_and_a_dead_one_is_noticed() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut a = Channel::new(a, None).unwrap();
        let short = Instant::now() + Duration::from_millis(20);
        assert!(matches!(a.receive(short), Err(ChannelError::Deadline)));
        drop(b);
        assert!(matches!(a.receive(soon()), Err(ChannelError::Closed)));
    }

    #[test]
    fn cancelling_ends_a_wait() {
        let (a, _b) = UnixStream::pair().unwrap();
        let cancel = nix::sys::eventfd::EventFd::from_value(1).unwrap();
        let mut a = Channel::new(a, Some(cancel.as_fd().try_clone_to_owned().unwrap())).unwrap();
        assert!(matches!(a.receive(soon()), Err(ChannelError::Cancelled)));
    }
}
