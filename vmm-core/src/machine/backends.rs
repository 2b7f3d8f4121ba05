//! What a machine's devices are on, on this host: opened, handed over, or opened again.

use std::sync::Arc;

use crate::config::{ChardevConfig, DeviceConfig, MachineConfig};
use crate::cpr::fds::FdTable;
use crate::devices::DeviceError;
use crate::devices::chardev::Chardev;
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
    /// Descriptors that were handed over.
    Kept(&'a mut FdTable),
    /// From what the configuration names, for a guest that has lived on it.
    Reopened,
}

/// The devices that are on something of the host's, not yet in a machine.
pub(super) struct Backends {
    pub(super) serial: Chardev,
    /// With their slots on the PCI bus.
    pub(super) devices: Vec<(u8, Arc<dyn VirtioDevice>)>,
    /// The balloon, which is one of them, if there is one.
    pub(super) balloon: Option<Arc<Balloon>>,
}

impl Backends {
    /// Makes those of a configuration whose ids and slots are settled.
    pub(super) fn make(config: &MachineConfig, source: &mut Source<'_>) -> Result<Self, DeviceError> {
        let serial = source.chardev("serial0", &config.serial)?;
        let mut balloon = None;
        let devices = config.devices.iter().map(|device| source.device(device, &mut balloon));
        let devices = devices.collect::<Result<_, _>>()?;
        Ok(Self { serial, devices, balloon })
    }
}

impl Source<'_> {
    fn chardev(&mut self, id: &str, config: &ChardevConfig) -> Result<Chardev, DeviceError> {
        match self {
            Self::New => Chardev::open(id, config),
            Self::Kept(fds) => Chardev::adopt(id, config, fds),
            Self::Reopened => Chardev::reopen(id, config),
        }
    }

    fn device(
        &mut self,
        device: &DeviceConfig,
        balloon: &mut Option<Arc<Balloon>>,
    ) -> Result<(u8, Arc<dyn VirtioDevice>), DeviceError> {
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
                Self::Kept(fds) => Block::adopt(id, config, fds)?,
                Self::New | Self::Reopened => Block::open(id, config)?,
            }),
            DeviceConfig::VirtioNet(config) => Arc::new(match self {
                Self::New => Net::open(id, config, false)?,
                Self::Kept(fds) => Net::adopt(id, config, fds)?,
                Self::Reopened => Net::open(id, config, true)?,
            }),
            DeviceConfig::VhostVsock(config) => Arc::new(match self {
                Self::Kept(fds) => Vsock::adopt(id, config, fds)?,
                Self::New | Self::Reopened => Vsock::open(id, config)?,
            }),
            DeviceConfig::VirtioSerial(config) => {
                let port = |(number, name, chardev): (u32, Option<&str>, &ChardevConfig)| {
                    let chardev = self.chardev(&format!("{id}.{number}"), chardev)?;
                    Ok((number, name.map(str::to_owned), chardev))
                };
                let ports: Result<Vec<_>, DeviceError> = config.numbered().into_iter().map(port).collect();
                Arc::new(Console::new(id, ports?)?)
            }
        };
        Ok((slot, made))
    }
}
