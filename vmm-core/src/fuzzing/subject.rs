//! The devices that are mistreated.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use super::net::{self, Network};
use super::vhost::{Double, MESSAGE};
use crate::config::{ChardevConfig, DeviceConfig};
use crate::cpr::fds::FdTable;
use crate::devices::chardev::Chardev;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::block::{Block, BlockConfig};
use crate::devices::virtio::console::Console;
use crate::devices::virtio::net::HEADER;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::vhost::{Node, Vhost};
use crate::devices::virtio::vsock::{Vsock, VsockConfig};

/// Which device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The entropy device.
    Rng,
    /// A console and a port with a name.
    Console,
    /// A disk with two queues.
    Block,
    /// A memory balloon, with reports of free pages.
    Balloon,
    /// A network device with two pairs of queues, whose packets this process moves.
    Net,
    /// The same, whose packets the kernel moves: the kernel is a double.
    VhostNet,
    /// Sockets, which the kernel serves: the kernel is a double.
    Vsock,
}

/// A request that keeps the rules.
pub(super) struct Request {
    pub queue: u16,
    /// The queues below this one are there too, with nothing in them.
    pub beside: u16,
    /// What the device reads.
    pub reads: Vec<u8>,
    /// What it may write.
    pub writes: u32,
    /// How much of that it must.
    pub written: u32,
}

/// The disk's size.
const DISK: u64 = 64 << 10;
const PORT: &str = "agent";

/// A device and what the host has of it.
pub(super) struct Subject {
    pub kind: Kind,
    pub device: Arc<dyn VirtioDevice>,
    outside: Outside,
}

/// What the host has of a device.
#[derive(Clone)]
enum Outside {
    Nothing,
    /// The other end of a console's port.
    Terminal(Arc<File>),
    /// A disk's image.
    Image(Arc<File>),
    Network(Arc<Network>),
}

impl Subject {
    pub(super) fn new(kind: Kind) -> Self {
        let (device, outside): (Arc<dyn VirtioDevice>, _) = match kind {
            Kind::Rng => (Arc::new(Rng::new("subject").unwrap()), Outside::Nothing),
            Kind::Balloon => (Arc::new(balloon()), Outside::Nothing),
            Kind::Net | Kind::VhostNet => {
                let network = Arc::new(Network::new());
                (Arc::new(network.open(kind == Kind::VhostNet)), Outside::Network(network))
            }
            Kind::Vsock => {
                let vsock = Vsock::open_on("subject", &vsock_config(), vhost()).unwrap();
                (Arc::new(vsock), Outside::Nothing)
            }
            Kind::Console => {
                let port = Chardev::open("subject.1", &ChardevConfig::Pty).unwrap();
                let mut options = OpenOptions::new();
                options.read(true).write(true).custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK);
                let terminal = options.open(port.pty_path().unwrap()).unwrap();
                (Arc::new(console(port)), Outside::Terminal(Arc::new(terminal)))
            }
            Kind::Block => {
                let image = memfd::MemfdOptions::new().create("image").unwrap().into_file();
                image.set_len(DISK).unwrap();
                let device = Block::open("subject", &disk(&image)).unwrap();
                (Arc::new(device), Outside::Image(Arc::new(image)))
            }
        };
        Self { kind, device, outside }
    }

    /// The same device in the next process.
    pub(super) fn adopt(&self, fds: &mut FdTable) -> Self {
        let device: Arc<dyn VirtioDevice> = match (self.kind, &self.outside) {
            (Kind::Console, _) => {
                Arc::new(console(Chardev::adopt("subject.1", &ChardevConfig::Pty, fds).unwrap()))
            }
            (Kind::Block, Outside::Image(image)) => {
                Arc::new(Block::adopt("subject", &disk(image), fds).unwrap())
            }
            (Kind::Balloon, _) => Arc::new(balloon()),
            (Kind::Net | Kind::VhostNet, _) => Arc::new(net::adopt(fds, self.kind == Kind::VhostNet)),
            (Kind::Vsock, _) => Arc::new(Vsock::adopt_on("subject", &vsock_config(), fds, vhost()).unwrap()),
            _ => Arc::new(Rng::new("subject").unwrap()),
        };
        Self { kind: self.kind, device, outside: self.outside.clone() }
    }

    /// The host's side does something.
    pub(super) fn stir(&self, bytes: &[u8]) {
        match &self.outside {
            Outside::Terminal(terminal) => {
                // A terminal that is full, or empty, is as good.
                let _ = (&**terminal).write(bytes);
                let _ = (&**terminal).read(&mut [0; 4096]);
            }
            Outside::Network(network) => network.stir(bytes),
            Outside::Image(_) | Outside::Nothing => {}
        }
    }

    /// The host's side makes ready for one of the device's requests, and for nothing else. The device is started, and has
    /// no buffers yet.
    pub(super) fn prompt(&self) {
        if let Outside::Network(network) = &self.outside {
            network.prompt();
        }
    }

    /// Requests that it must answer, each after a reset.
    pub(super) fn requests(&self) -> Vec<Request> {
        let one =
            |queue, reads: Vec<u8>, writes| Request { queue, beside: 0, reads, writes, written: writes };
        let packet = vec![0; HEADER + net::FRAME];
        // The guest has announced itself.
        let control = one(2, vec![3, 0], 1);
        match self.kind {
            Kind::Rng => vec![rng_request()],
            // A page goes in.
            Kind::Balloon => vec![one(0, vec![0x10, 0, 0, 0], 0)],
            // The driver is ready.
            Kind::Console => vec![one(3, [&[0xff; 4][..], &[0, 0, 1, 0]].concat(), 0)],
            // Reads the first sector; the status follows it.
            Kind::Block => vec![one(0, vec![0; 16], 513)],
            // From the guest, to it, and of the device itself.
            Kind::Net => {
                let received = Request { written: packet.len() as u32, ..one(0, Vec::new(), 2048) };
                vec![one(1, packet, 0), received, control]
            }
            Kind::VhostNet => vec![
                Request { beside: 1, ..one(1, packet, 0) },
                Request { beside: 2, written: MESSAGE, ..one(0, Vec::new(), 2048) },
                Request { beside: 2, ..control },
            ],
            Kind::Vsock => vec![
                Request { beside: 1, ..one(1, vec![0; MESSAGE as usize], 0) },
                Request { beside: 2, written: MESSAGE, ..one(0, Vec::new(), 2048) },
            ],
        }
    }
}

fn vhost() -> Vhost {
    Vhost::with("subject", Node::Vsock, Arc::<Double>::default()).unwrap()
}

fn vsock_config() -> VsockConfig {
    VsockConfig { guest_cid: 7, ..VsockConfig::default() }
}

/// What an entropy device must answer.
pub(super) fn rng_request() -> Request {
    Request { queue: 0, beside: 0, reads: Vec::new(), writes: 64, written: 64 }
}

fn balloon() -> Balloon {
    Balloon::new("subject", true).unwrap()
}

fn console(port: Chardev) -> Console {
    let console = Chardev::open("subject.0", &ChardevConfig::Null).unwrap();
    Console::new("subject", vec![(0, None, console), (1, Some(PORT.into()), port)]).unwrap()
}

fn disk(image: &File) -> BlockConfig {
    let text = format!("virtio-blk-pci,path=/proc/self/fd/{},queues=2,serial=hostile", image.as_raw_fd());
    match text.parse().unwrap() {
        DeviceConfig::VirtioBlk(config) => config,
        other => panic!("{other:?}"),
    }
}
