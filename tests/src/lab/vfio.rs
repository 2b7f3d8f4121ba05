//! The host's side of assigned devices: bound to vfio-pci for a guest, and given back to their own drivers after its end.
//!
//! 1. A device is bound by its address alone (`driver_override`, Documentation/ABI/testing/sysfs-bus-pci): others of its kind
//!    keep their driver.
//! 2. What is given back is used: a disk is read from its first block to its last, a network card finds its wire.

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guest_init::status::Rom;
use guest_init::{link, rom};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::assigned::{Kind, Place};
use super::report::GivenBack;

const DEVICES: &str = "/sys/bus/pci/devices";
const PROBE: &str = "/sys/bus/pci/drivers_probe";
const VFIO: &str = "vfio-pci";
/// How long a driver may take to take a device, or to let it go.
const WITHIN: Duration = Duration::from_mins(2);

/// A device that is bound to vfio-pci.
pub struct Bound {
    address: String,
    kind: Kind,
    /// What it has in its ROM.
    rom: Option<Rom>,
}

/// Binds all devices that are to be assigned, and says what the host has for them.
pub fn bind(devices: Vec<(Place, Kind)>) -> Result<Vec<Bound>> {
    let take = |(place, kind): (Place, Kind)| {
        let address = place.to_string();
        let rom = rom::of(&Path::new(DEVICES).join(&address));
        let bound = Bound { address, kind, rom };
        bound.take().with_context(|| format!("binding {} to {VFIO}", bound.address))?;
        Ok(bound)
    };
    let bound = devices.into_iter().map(take).collect::<Result<Vec<_>>>()?;
    for device in &bound {
        println!("{}", device.description());
    }
    Ok(bound)
}

/// Asks for a device back that a guest has: vfio-pci asks its owner again and again, and waits for the guest's end.
pub fn ask_back(address: String) {
    let path = Path::new(DEVICES).join(&address).join("driver/unbind");
    thread::spawn(move || {
        if let Err(error) = write(&path, &address) {
            println!("{error:#}");
        }
    });
}

/// Opens a device's node and an IOMMUFD, for a program that is executed to have them.
pub fn give(address: &str) -> Result<[File; 2]> {
    let nodes = names(&Path::new(DEVICES).join(address).join("vfio-dev"));
    let node = nodes.first().with_context(|| format!("{address} has no node in /dev/vfio/devices"))?;
    let open = |path: &Path| {
        let file = File::options().read(true).write(true).open(path);
        let file = file.with_context(|| format!("opening {}", path.display()))?;
        fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty()))
            .context("keeping a descriptor open for a program")?;
        Ok::<_, anyhow::Error>(file)
    };
    Ok([open(&Path::new("/dev/vfio/devices").join(node))?, open(Path::new("/dev/iommu"))?])
}

impl Bound {
    fn directory(&self) -> PathBuf {
        Path::new(DEVICES).join(&self.address)
    }

    /// The last part of what a link in the device's directory points to.
    fn link(&self, name: &str) -> Option<String> {
        let target = fs::read_link(self.directory().join(name)).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }

    /// Takes the device from the driver that has it, and gives it to the one named, or to whichever wants it.
    fn rebind(&self, to: Option<&'static str>) -> Result<()> {
        // vfio-pci waits, without end, for whoever has the device open, and so does everything that is asked meanwhile.
        let (sender, done) = mpsc::channel();
        let (directory, address) = (self.directory(), self.address.clone());
        thread::spawn(move || sender.send(rebind(&directory, &address, to)));
        match done.recv_timeout(WITHIN) {
            Ok(done) => done,
            Err(_) => bail!("another driver has not got it within {WITHIN:?}: is it still open?"),
        }
    }

    fn take(&self) -> Result<()> {
        let driver = self.link("driver");
        ensure!(driver.as_deref() == self.kind.driver(), "its driver is {driver:?} before that");
        self.rebind(Some(VFIO))?;
        let driver = self.link("driver");
        ensure!(driver.as_deref() == Some(VFIO), "its driver is {driver:?} after that");
        Ok(())
    }

    /// Its group with all that is in it, and its character device, if the kernel has such.
    fn description(&self) -> String {
        let group = self.link("iommu_group").unwrap_or_else(|| "none".into());
        let members = names(&self.directory().join("iommu_group/devices")).join(" ");
        let cdev = names(&self.directory().join("vfio-dev")).join(" ");
        let iommufd = Path::new("/dev/iommu").exists();
        format!(
            "{} is bound to {VFIO}: group {group} ({members}), cdev '{cdev}', /dev/iommu {iommufd}",
            self.address
        )
    }

    /// Gives it back to its own driver, and reads all of it.
    pub fn give_back(self) -> GivenBack {
        let read = self
            .rebind(None)
            .and_then(|()| self.used())
            .with_context(|| format!("giving {} back", self.address));
        let (read, wrong) = match read {
            Ok(read) => (read, None),
            Err(error) => (0, Some(format!("{error:#}"))),
        };
        GivenBack { device: self.address, read, rom: self.rom, wrong }
    }

    /// Uses the device as its own driver does; gives the number of bytes read of a disk.
    fn used(&self) -> Result<u64> {
        let read = match self.kind {
            Kind::Nvme => self.read()?,
            Kind::Edu => 0,
            Kind::Card(_) => self.carries().map(|()| 0)?,
        };
        let driver = self.link("driver");
        ensure!(driver.as_deref() == self.kind.driver(), "its driver is {driver:?}");
        Ok(read)
    }

    /// Sets the network card up, until its wire is seen.
    fn carries(&self) -> Result<()> {
        let deadline = Instant::now() + WITHIN;
        let nets = |directory: &Path| names(&directory.join("net"));
        loop {
            // That of a virtio device is one level further down.
            let below = names(&self.directory()).into_iter().map(|name| self.directory().join(name));
            let found = std::iter::once(self.directory()).chain(below).flat_map(|directory| nets(&directory));
            for name in found {
                link::up(&name, Ipv4Addr::new(198, 51, 100, 1))
                    .with_context(|| format!("setting up {name}"))?;
                let carrier = fs::read_to_string(Path::new("/sys/class/net").join(&name).join("carrier"));
                if carrier.is_ok_and(|carrier| carrier.trim() == "1") {
                    return Ok(());
                }
            }
            ensure!(Instant::now() < deadline, "no network card with a carrier appeared within {WITHIN:?}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Reads the whole disk; gives the number of bytes.
    fn read(&self) -> Result<u64> {
        let node = self.node()?;
        let mut disk = File::open(&node).with_context(|| format!("opening {}", node.display()))?;
        io::copy(&mut disk, &mut io::sink()).with_context(|| format!("reading {}", node.display()))
    }

    /// The disk's node in /dev, once it is there.
    fn node(&self) -> Result<PathBuf> {
        let deadline = Instant::now() + WITHIN;
        let controllers = self.directory().join("nvme");
        loop {
            let inside = names(&controllers).into_iter().flat_map(|name| names(&controllers.join(name)));
            let mut nodes = inside.filter_map(|name| Some(Path::new("/dev").join(disk_of(&name)?)));
            match nodes.find(|node| node.exists()) {
                Some(node) => return Ok(node),
                None if Instant::now() > deadline => bail!("no disk appeared within {WITHIN:?}"),
                None => thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

fn rebind(directory: &Path, address: &str, to: Option<&str>) -> Result<()> {
    let unbind = directory.join("driver/unbind");
    if unbind.exists() {
        write(&unbind, address)?;
    }
    write(&directory.join("driver_override"), to.unwrap_or("\n"))?;
    write(Path::new(PROBE), address)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing '{}' to {}", text.trim(), path.display()))
}

/// The disk that an entry of a controller's directory is, or is a path to: a kernel that knows of several paths to a disk has
/// `nvme0c0n1` there for `nvme0n1`.
fn disk_of(entry: &str) -> Option<String> {
    let numbers = entry.strip_prefix("nvme")?;
    let (subsystem, rest) = numbers.split_once(['c', 'n'])?;
    let namespace = rest.rsplit('n').next()?;
    Some(format!("nvme{subsystem}n{namespace}"))
}

/// What a directory has; nothing, if there is none.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_known_by_its_own_name_and_by_that_of_a_path_to_it() {
        assert_eq!(disk_of("nvme0n1").as_deref(), Some("nvme0n1"));
        assert_eq!(disk_of("nvme1c3n2").as_deref(), Some("nvme1n2"));
        for other in ["power", "cntlid", "nvme0"] {
            assert_eq!(disk_of(other), None, "{other}");
        }
    }
}
