//! The devices that are mistreated.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use crate::config::{ChardevConfig, DeviceConfig};
use crate::cpr::fds::FdTable;
use crate::devices::chardev::Chardev;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::block::{Block, BlockConfig};
use crate::devices::virtio::console::Console;
use crate::devices::virtio::rng::Rng;

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
}

/// A request that keeps the rules.
pub(super) struct Request {
    pub queue: u16,
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
    /// The other end of the port, or the disk's image.
    outside: Option<Arc<File>>,
}

impl Subject {
    pub(super) fn new(kind: Kind) -> Self {
        let (device, outside): (Arc<dyn VirtioDevice>, _) = match kind {
            Kind::Rng => (Arc::new(Rng::new("subject").unwrap()), None),
            Kind::Balloon => (Arc::new(balloon()), None),
            Kind::Console => {
                let port = Chardev::open("subject.1", &ChardevConfig::Pty).unwrap();
                let mut options = OpenOptions::new();
                options.read(true).write(true).custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK);
                let terminal = options.open(port.pty_path().unwrap()).unwrap();
                (Arc::new(console(port)), Some(Arc::new(terminal)))
            }
            Kind::Block => {
                let image = memfd::MemfdOptions::new().create("image").unwrap().into_file();
                image.set_len(DISK).unwrap();
                let device = Block::open("subject", &disk(&image)).unwrap();
                (Arc::new(device), Some(Arc::new(image)))
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
            (Kind::Block, Some(image)) => Arc::new(Block::adopt("subject", &disk(image), fds).unwrap()),
            (Kind::Balloon, _) => Arc::new(balloon()),
            _ => Arc::new(Rng::new("subject").unwrap()),
        };
        Self { kind: self.kind, device, outside: self.outside.clone() }
    }

    /// The host's side does something.
    pub(super) fn stir(&self, bytes: &[u8]) {
        if let (Kind::Console, Some(terminal)) = (self.kind, &self.outside) {
            // A terminal that is full, or empty, is as good.
            let _ = (&**terminal).write(bytes);
            let _ = (&**terminal).read(&mut [0; 4096]);
        }
    }

    /// A request that it must answer.
    pub(super) fn request(&self) -> Request {
        match self.kind {
            Kind::Rng => rng_request(),
            // A page goes in.
            Kind::Balloon => Request { queue: 0, reads: vec![0x10, 0, 0, 0], writes: 0, written: 0 },
            // The driver is ready.
            Kind::Console => {
                Request { queue: 3, reads: [&[0xff; 4][..], &[0, 0, 1, 0]].concat(), writes: 0, written: 0 }
            }
            // Reads the first sector; the status follows it.
            Kind::Block => Request { queue: 0, reads: vec![0; 16], writes: 513, written: 513 },
        }
    }
}

/// What an entropy device must answer.
pub(super) fn rng_request() -> Request {
    Request { queue: 0, reads: Vec::new(), writes: 64, written: 64 }
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
