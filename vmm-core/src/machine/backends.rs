//! What a machine's devices are on, on this host: opened, handed over, or opened again.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::config::{ChardevConfig, DeviceConfig, MachineConfig};
use crate::cpr::fds::FdTable;
use crate::devices::DeviceError;
use crate::devices::chardev::Chardev;
use crate::devices::vfio::{self, Assigned, Opener};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::block::Block;
use crate::devices::virtio::console::Console;
use crate::devices::virtio::net::Net;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::vsock::Vsock;

/// Where what a device is on comes from.
#[derive(Debug)]
pub enum Source<'a> {
    /// From what the configuration names, for a guest that has not lived yet.
    New,
    /// Descriptors that were handed over, with a guest.
    Kept(&'a mut FdTable),
    /// Descriptors of a guest that begins anew.
    Restarted(&'a mut FdTable),
    /// From what the configuration names, for a guest that has lived on it, and whose RAM is there.
    Reopened(SavedRam),
}

/// Where the RAM of a saved guest is.
#[derive(Debug)]
pub enum SavedRam {
    /// Where the configuration says.
    Stays,
    /// In the file; it is made anew.
    Copied,
    /// In these, which the kernel has kept; in the order of the blocks.
    Preserved(std::vec::IntoIter<OwnedFd>),
}

/// The devices that are on something of the host's, not yet in a machine.
pub(super) struct Backends {
    pub(super) serial: Chardev,
    /// With their slots on the PCI bus.
    pub(super) devices: Vec<(u8, Backend)>,
    /// Where the DMA of those goes that are the host's.
    pub(super) spaces: Opener,
    /// The balloon, which is one of them, if there is one.
    pub(super) balloon: Option<Arc<Balloon>>,
}

/// What is put on the bus.
pub(super) enum Backend {
    /// A virtio device.
    Virtio(Arc<dyn VirtioDevice>),
    /// A device of the host.
    Vfio(Assigned),
}

impl Backends {
    /// Makes those of a configuration whose ids and slots are settled.
    pub(super) fn make(config: &MachineConfig, source: &mut Source<'_>) -> Result<Self, DeviceError> {
        let serial = source.chardev("serial0", &config.serial)?;
        let (mut balloon, mut spaces) = (None, Opener::default());
        source.forget_assigned(config);
        let devices = config.devices.iter().map(|device| source.device(device, &mut balloon, &mut spaces));
        let devices = devices.collect::<Result<_, _>>()?;
        Ok(Self { serial, devices, spaces, balloon })
    }
}

impl Source<'_> {
    /// A guest that begins anew has its assigned devices opened anew, for RAM that is new: that resets them.
    fn forget_assigned(&mut self, config: &MachineConfig) {
        let Self::Restarted(fds) = self else { return };
        for device in &config.devices {
            if let (DeviceConfig::VfioPci(_), Some(id)) = (device, device.id()) {
                vfio::forget(id, fds);
            }
        }
    }

    fn chardev(&mut self, id: &str, config: &ChardevConfig) -> Result<Chardev, DeviceError> {
        match self {
            Self::New => Chardev::open(id, config),
            Self::Kept(fds) | Self::Restarted(fds) => Chardev::adopt(id, config, fds),
            Self::Reopened(_) => Chardev::reopen(id, config),
        }
    }

    fn device(
        &mut self,
        device: &DeviceConfig,
        balloon: &mut Option<Arc<Balloon>>,
        spaces: &mut Opener,
    ) -> Result<(u8, Backend), DeviceError> {
        let (Some(id), Some(slot)) = (device.id(), device.addr()) else {
            let found = format!("a {} without id or slot", device.driver());
            let expected = "both in every guest that was booted".into();
            return Err(DeviceError::impossible("pci")((found, expected)));
        };
        let made = match device {
            DeviceConfig::VirtioRng(_) => Arc::new(Rng::new(id)?) as Arc<dyn VirtioDevice>,
            DeviceConfig::VirtioBalloon(config) => {
                Arc::clone(balloon.insert(Arc::new(Balloon::new(id, config.free_page_reporting)?))) as Arc<_>
            }
            DeviceConfig::VirtioBlk(config) => Arc::new(match self {
                Self::Kept(fds) | Self::Restarted(fds) => Block::adopt(id, config, fds)?,
                Self::New | Self::Reopened(_) => Block::open(id, config)?,
            }),
            DeviceConfig::VirtioNet(config) => Arc::new(match self {
                Self::New => Net::open(id, config, false)?,
                Self::Kept(fds) | Self::Restarted(fds) => Net::adopt(id, config, fds)?,
                Self::Reopened(_) => Net::open(id, config, true)?,
            }),
            DeviceConfig::VhostVsock(config) => Arc::new(match self {
                Self::Kept(fds) | Self::Restarted(fds) => Vsock::adopt(id, config, fds)?,
                Self::New | Self::Reopened(_) => Vsock::open(id, config)?,
            }),
            DeviceConfig::VirtioSerial(config) => {
                let port = |(number, name, chardev): (u32, Option<&str>, &ChardevConfig)| {
                    let chardev = self.chardev(&format!("{id}.{number}"), chardev)?;
                    Ok((number, name.map(str::to_owned), chardev))
                };
                let ports: Result<Vec<_>, DeviceError> = config.numbered().into_iter().map(port).collect();
                Arc::new(Console::new(id, ports?)?)
            }
            DeviceConfig::VfioPci(config) => {
                let assigned = match self {
                    Self::Kept(fds) => spaces.adopt(id, fds)?,
                    Self::Restarted(_) | Self::Reopened(_) => spaces.open_again(id, config)?,
                    Self::New => spaces.open(id, config)?,
                };
                return Ok((slot, Backend::Vfio(assigned)));
            }
        };
        Ok((slot, Backend::Virtio(made)))
    }
}
