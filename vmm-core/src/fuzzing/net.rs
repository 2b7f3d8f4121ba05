//! A network without one: sockets stand for a tap's queues, and keep the bounds of packets as it does.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};

use super::vhost::Double;
use crate::config::DeviceConfig;
use crate::cpr::fds::{FdName, FdTable};
use crate::devices::DeviceError;
use crate::devices::virtio::net::{HEADER, Net, NetConfig, Tap};
use crate::devices::virtio::vhost::{Node, Vhost};

/// Pairs of queues.
const PAIRS: u32 = 2;
/// Bytes of a frame that a host sends.
pub(super) const FRAME: usize = 60;

/// The host's ends of the queues, and the device's to drain.
pub(super) struct Network {
    host: Vec<OwnedFd>,
    device: Vec<OwnedFd>,
}

impl Network {
    pub(super) fn new() -> Self {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let pair = |_| socketpair(AddressFamily::Unix, SockType::Datagram, None, flags).unwrap();
        let (host, device) = (0..PAIRS).map(pair).unzip();
        Self { host, device }
    }

    /// The device on it, fresh.
    pub(super) fn open(&self, vhost: bool) -> Net {
        device(self.device.iter().map(|fd| fd.try_clone().unwrap()).collect(), vhost)
    }

    /// Packets come from the host, of any length that a tap has; what the guest has sent is taken.
    pub(super) fn stir(&self, bytes: &[u8]) {
        drain(&self.host);
        for (socket, byte) in self.host.iter().zip(bytes) {
            let length = HEADER + usize::from(*byte) * if bytes[2] & 1 == 0 { 1 } else { 257 };
            let mut packet = vec![0; length];
            packet.iter_mut().skip(HEADER).zip(bytes.iter().cycle()).for_each(|(to, from)| *to = *from);
            // A queue that is full is as good.
            let _ = send(socket.as_raw_fd(), &packet, MsgFlags::empty());
        }
    }

    /// All queues are empty but for one packet to the guest.
    pub(super) fn prompt(&self) {
        drain(&self.host);
        drain(&self.device);
        send(self.host[0].as_raw_fd(), &[0; HEADER + FRAME], MsgFlags::empty()).unwrap();
    }
}

fn drain(sockets: &[OwnedFd]) {
    let mut packet = [0; 16];
    for socket in sockets {
        while recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty()).is_ok() {}
    }
}

/// The device in the next process.
pub(super) fn adopt(fds: &mut FdTable, vhost: bool) -> Net {
    device((0..PAIRS).map(|queue| fds.take(&FdName::new("subject.tap", queue)).unwrap()).collect(), vhost)
}

fn device(sockets: Vec<OwnedFd>, vhost: bool) -> Net {
    let on = || -> Result<Vhost, DeviceError> { Vhost::with("subject", Node::Net, Arc::<Double>::default()) };
    Net::with("subject", &config(vhost), Tap::double(sockets), false, on).unwrap()
}

fn config(vhost: bool) -> NetConfig {
    let vhost = if vhost { ",vhost=on" } else { "" };
    let text = format!("virtio-net-pci,tap=t0,mac=52:54:00:12:34:56,queues={PAIRS}{vhost}");
    match text.parse().unwrap() {
        DeviceConfig::VirtioNet(config) => config,
        other => panic!("{other:?}"),
    }
}
