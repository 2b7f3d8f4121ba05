//! A tap: the host's end of a guest's network device (the kernel's `Documentation/networking/tuntap.rst`).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use libc::{
    IFF_DETACH_QUEUE, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, TUN_F_CSUM, TUN_F_TSO_ECN,
    TUN_F_TSO4, TUN_F_TSO6, TUN_F_UFO, TUN_F_USO4, TUN_F_USO6,
};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};

use super::announce::{FRAME, rarp};
use super::mac::Mac;
use crate::cpr::fds::{FdError, FdName, FdTable};
use crate::devices::given;
use crate::devices::virtio::buffers::GuestBuffers;

/// Bytes of the header before each packet (virtio 1.2, section 5.1.6: with `num_buffers`).
pub const HEADER: usize = 12;

/// Where taps come from.
const TUN: &str = "/dev/net/tun";

/// Why a tap could not be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// A system call failed.
    #[error("tap {tap}: {doing}: {source}")]
    Io {
        /// Its name, or its descriptor where the name is not known.
        tap: String,
        /// What was being done.
        doing: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// There is no interface of that name.
    #[error("tap {0}: no such interface in this network namespace; make it: ip tuntap add {0} mode tap")]
    Missing(String),
    /// Another process has it.
    #[error("tap {0}: another process has it, and it was made for one queue only")]
    Busy(String),
    /// It cannot be what the device needs.
    #[error("tap {tap}: found {found}; expected {expected}")]
    Unfit {
        /// Its name, or its descriptor where the name is not known.
        tap: String,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
}

impl TapError {
    fn io<E: Into<io::Error>>(tap: &str, doing: &'static str) -> impl FnOnce(E) -> Self + use<E> {
        let tap = tap.to_owned();
        move |source| Self::Io { tap, doing, source: source.into() }
    }

    fn unfit(tap: &str, found: &str, expected: &str) -> Self {
        Self::Unfit { tap: tap.into(), found: found.into(), expected: expected.into() }
    }
}

/// `struct ifreq`, as the tap's ioctls use it.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: u16,
    rest: [u8; 22],
}

impl Request {
    fn new(name: &str, flags: i32) -> Self {
        let mut request = Self { name: [0; libc::IFNAMSIZ], flags: flags as u16, rest: [0; 22] };
        // The last byte stays 0.
        request.name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)).for_each(|(to, from)| *to = from);
        request
    }

    fn name(&self) -> String {
        self.name.iter().take_while(|byte| **byte != 0).map(|byte| *byte as char).collect()
    }
}

/// The offloads (TUN_F_…) that go with what the driver has negotiated: what a packet to the guest may leave to it. What
/// lacks the feature that it builds on is left out, as the kernel would refuse all of it.
pub fn offloads(features: u64) -> u32 {
    let has = |bit: u32| features & (1 << bit) != 0;
    let mut offloads = 0;
    if has(VIRTIO_NET_F_GUEST_CSUM) {
        offloads |= TUN_F_CSUM;
        for (bit, flag) in [
            (VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4),
            (VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6),
            (VIRTIO_NET_F_GUEST_UFO, TUN_F_UFO),
        ] {
            offloads |= if has(bit) { flag } else { 0 };
        }
        if has(VIRTIO_NET_F_GUEST_ECN) && offloads & (TUN_F_TSO4 | TUN_F_TSO6) != 0 {
            offloads |= TUN_F_TSO_ECN;
        }
        if has(VIRTIO_NET_F_GUEST_USO4) && has(VIRTIO_NET_F_GUEST_USO6) {
            offloads |= TUN_F_USO4 | TUN_F_USO6;
        }
    }
    offloads
}

/// A tap with a queue for each queue pair of the device.
#[derive(Debug)]
pub struct Tap {
    name: String,
    queues: Vec<TapQueue>,
    /// Sockets stand for its queues, in a test: there is no interface to set up.
    double: bool,
}

impl Tap {
    /// Opens an interface that exists.
    pub fn open(name: &str, queues: u16) -> Result<Self, TapError> {
        nix::net::if_::if_nametoindex(name).map_err(|_| TapError::Missing(name.into()))?;
        let several = if queues > 1 { IFF_MULTI_QUEUE } else { 0 };
        let first = match attach(name, several) {
            // It was made for several queues, and takes the like only.
            Err(TapError::Io { source, .. })
                if several == 0 && source.raw_os_error() == Some(libc::EINVAL) =>
            {
                attach(name, IFF_MULTI_QUEUE)?
            }
            Err(TapError::Io { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
                let expected = "a tap for several: ip tuntap add … mode tap multi_queue";
                return Err(TapError::unfit(name, "no tap, or one for one queue only", expected));
            }
            other => other?,
        };
        let mut files = vec![first];
        for _ in 1..queues {
            files.push(attach(name, IFF_MULTI_QUEUE)?);
        }
        let tap = Self::of(files.into_iter().map(OwnedFd::from).collect())?;
        tap.prepare()?;
        Ok(tap)
    }

    /// Takes the descriptors that a manager gave by their numbers. They are closed once the tap has duplicates.
    pub fn from_given(numbers: &[RawFd]) -> Result<Self, TapError> {
        let mut fds = Vec::with_capacity(numbers.len());
        for number in numbers {
            let copy = given::duplicate(*number);
            fds.push(copy.map_err(TapError::io(&format!("descriptor {number}"), "taking it"))?);
        }
        let tap = Self::of(fds)?;
        tap.prepare()?;
        for number in numbers {
            // SAFETY: it was seen to be a tap that was given to this process; nothing else in it has it.
            unsafe { given::close(*number) };
        }
        Ok(tap)
    }

    /// Takes over what [`Self::register`] has registered, after checking it. Nothing about the tap is changed.
    pub fn adopt(id: &str, queues: u16, fds: &mut FdTable) -> Result<Self, FdError> {
        let name = |queue| FdName::new(format!("{id}.tap"), queue);
        let taken: Result<_, _> = (0..u32::from(queues)).map(|queue| fds.take(&name(queue))).collect();
        let adopted = Self::of(taken?).and_then(|tap| tap.check_header().map(|()| tap));
        adopted.map_err(|error| FdError::Wrong {
            name: name(0),
            found: error.to_string(),
            expected: format!("a tap that another process has set up, with {queues} queues"),
        })
    }

    /// Registers duplicates of the descriptors: `ID.tap`, one for each queue.
    pub fn register(&self, id: &str, fds: &mut FdTable) -> Result<(), FdError> {
        for (i, queue) in self.queues.iter().enumerate() {
            fds.insert_dup(FdName::new(format!("{id}.tap"), i as u32), queue.file.as_fd())?;
        }
        Ok(())
    }

    /// Checks that these are the queues of one tap with headers.
    fn of(fds: Vec<OwnedFd>) -> Result<Self, TapError> {
        let (mut name, several) = (None::<String>, fds.len() > 1);
        for fd in &fds {
            let number = format!("descriptor {}", fd.as_raw_fd());
            let found = interface(fd.as_fd()).map_err(|e| match e.raw_os_error() {
                Some(libc::ENOTTY | libc::EBADFD) => TapError::unfit(&number, "no open tap", "one"),
                _ => TapError::io(&number, "asking what it is")(e),
            })?;
            let flags = i32::from(found.flags);
            let found = found.name();
            // Whether it has protocol information too (no IFF_NO_PI) cannot be seen: TUNGETIFF uses that bit for
            // IFF_NOFILTER.
            let needed = "a tap with the virtio-net header (IFF_TAP, IFF_NO_PI, IFF_VNET_HDR)";
            for (flag, is) in [(IFF_TAP, "a tun"), (IFF_VNET_HDR, "one without the header")] {
                if flags & flag == 0 {
                    return Err(TapError::unfit(&found, is, needed));
                }
            }
            if several && flags & IFF_MULTI_QUEUE == 0 {
                return Err(TapError::unfit(
                    &found,
                    "a tap for one queue",
                    "one for several (IFF_MULTI_QUEUE)",
                ));
            }
            match &name {
                Some(name) if *name != found => {
                    return Err(TapError::unfit(&found, &format!("queues of it and of {name}"), "one tap's"));
                }
                _ => name = Some(found),
            }
        }
        let name = name.unwrap_or_default();
        for fd in &fds {
            set_non_blocking(fd.as_fd()).map_err(TapError::io(&name, "making it non-blocking"))?;
        }
        Ok(Self {
            name,
            queues: fds.into_iter().map(|fd| TapQueue { file: fd.into() }).collect(),
            double: false,
        })
    }

    /// A tap that is none: sockets whose messages keep their bounds, one for each queue, that do not wait.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn double(sockets: Vec<OwnedFd>) -> Self {
        let queues = sockets.into_iter().map(|fd| TapQueue { file: fd.into() }).collect();
        Self { name: "double".into(), queues, double: true }
    }

    fn check_header(&self) -> Result<(), TapError> {
        for queue in &self.queues {
            let mut size: libc::c_int = 0;
            // SAFETY: TUNGETVNETHDRSZ writes an int.
            check(unsafe { ioctl_with_mut_ref(&queue.file, libc::TUNGETVNETHDRSZ, &mut size) })
                .map_err(TapError::io(&self.name, "reading the header's size"))?;
            if size != HEADER as libc::c_int {
                let (found, expected) = (format!("headers of {size} bytes"), format!("{HEADER}"));
                return Err(TapError::unfit(&self.name, &found, &expected));
            }
        }
        Ok(())
    }

    /// What a cold boot's tap must be set to.
    fn prepare(&self) -> Result<(), TapError> {
        let size = HEADER as libc::c_int;
        for queue in &self.queues {
            // SAFETY: TUNSETVNETHDRSZ reads an int.
            check(unsafe { ioctl_with_ref(&queue.file, libc::TUNSETVNETHDRSZ, &size) })
                .map_err(TapError::io(&self.name, "setting the header's size"))?;
        }
        self.set_offloads(0)
    }

    /// Sets what packets to the guest may leave to it ([`offloads`]).
    pub fn set_offloads(&self, offloads: u32) -> Result<(), TapError> {
        let Some(queue) = self.queues.first().filter(|_| !self.double) else { return Ok(()) };
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        check(unsafe { ioctl_with_val(&queue.file, libc::TUNSETOFFLOAD, offloads.into()) })
            .map_err(TapError::io(&self.name, "setting its offloads"))
    }

    /// Whether the kernel knows UDP segmentation (6.2 and newer). It turns all offloads off: for before the driver's
    /// first start only.
    pub fn probe_uso(&self) -> Result<bool, TapError> {
        let known = self.set_offloads(TUN_F_CSUM | TUN_F_USO4 | TUN_F_USO6).is_ok();
        self.set_offloads(0)?;
        Ok(known)
    }

    /// Lets the kernel spread packets over the first `count` queues only, as the driver asked.
    pub fn enable_queues(&self, count: u16) -> Result<(), TapError> {
        for (i, queue) in self.queues.iter().enumerate().filter(|_| !self.double) {
            let enable = i < usize::from(count);
            let found = interface(queue.as_fd()).map_err(TapError::io(&self.name, "looking at a queue"))?;
            let enabled = i32::from(found.flags) & IFF_DETACH_QUEUE == 0;
            if enable != enabled {
                let request =
                    Request::new("", if enable { libc::IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE });
                // SAFETY: TUNSETQUEUE reads a struct ifreq.
                check(unsafe { ioctl_with_ref(&queue.file, libc::TUNSETQUEUE, &request) })
                    .map_err(TapError::io(&self.name, "attaching or detaching a queue"))?;
            }
        }
        Ok(())
    }

    /// Whether the interface was deleted.
    pub fn is_gone(&self) -> bool {
        let gone = |queue: &TapQueue| {
            interface(queue.as_fd()).is_err_and(|error| error.raw_os_error() == Some(libc::EBADFD))
        };
        !self.double && self.queues.iter().any(gone)
    }

    /// Tells the network where the guest is: a RARP frame, as if the guest had sent it.
    pub fn announce(&self, mac: Mac) -> io::Result<()> {
        let Some(queue) = self.queues.first() else { return Ok(()) };
        let mut packet = [0; HEADER + FRAME];
        packet[HEADER..].copy_from_slice(&rarp(mac));
        io::Write::write(&mut &queue.file, &packet).map(drop)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its queues, one for each pair of the device's.
    pub fn queues(&self) -> &[TapQueue] {
        &self.queues
    }
}

/// One queue of a tap.
#[derive(Debug)]
pub struct TapQueue {
    file: File,
}

impl TapQueue {
    /// Receives one packet, header first; `None` if there is none. What does not fit is cut off by the kernel without a
    /// word. EBADFD: the interface was deleted.
    pub fn receive(&self, into: &GuestBuffers) -> io::Result<Option<usize>> {
        let (pieces, fd) = (into.pieces(), self.file.as_raw_fd());
        // SAFETY: the pieces are in guest RAM that `into` keeps mapped; nothing in this process refers to it.
        transferred(|| unsafe { libc::readv(fd, pieces.as_ptr(), pieces.len() as libc::c_int) })
    }

    /// Sends one packet, header first; `None` if there is no room. An error is this packet's, whose header or length makes
    /// no sense (EINVAL), or the interface's: it is down (EIO) or was deleted (EBADFD).
    pub fn send(&self, from: &GuestBuffers) -> io::Result<Option<usize>> {
        let (pieces, fd) = (from.pieces(), self.file.as_raw_fd());
        // SAFETY: as above; the kernel only reads.
        transferred(|| unsafe { libc::writev(fd, pieces.as_ptr(), pieces.len() as libc::c_int) })
    }
}

impl AsFd for TapQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn transferred(call: impl Fn() -> isize) -> io::Result<Option<usize>> {
    loop {
        if let Ok(n) = usize::try_from(call()) {
            return Ok(Some(n));
        }
        match io::Error::last_os_error() {
            e if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            e if e.kind() == io::ErrorKind::Interrupted => {}
            e => return Err(e),
        }
    }
}

/// A new queue of an interface.
fn attach(name: &str, several: i32) -> Result<File, TapError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(TUN)
        .map_err(TapError::io(name, "opening /dev/net/tun"))?;
    let mut request = Request::new(name, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | several);
    // SAFETY: TUNSETIFF reads a struct ifreq and writes it back.
    check(unsafe { ioctl_with_mut_ref(&file, libc::TUNSETIFF, &mut request) }).map_err(|e| {
        match e.raw_os_error() {
            Some(libc::EBUSY) => TapError::Busy(name.into()),
            _ => TapError::io(name, "attaching to it")(e),
        }
    })?;
    Ok(file)
}

/// What interface a descriptor is a queue of.
fn interface(fd: BorrowedFd<'_>) -> io::Result<Request> {
    let mut request = Request::new("", 0);
    // SAFETY: TUNGETIFF writes a struct ifreq.
    check(unsafe { ioctl_with_mut_ref(&fd, libc::TUNGETIFF, &mut request) })?;
    Ok(request)
}

fn set_non_blocking(fd: BorrowedFd<'_>) -> nix::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
#[path = "tap_tests.rs"]
pub(super) mod tests;
