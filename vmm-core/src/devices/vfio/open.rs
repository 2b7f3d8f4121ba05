//! Finds an assigned device: by its address on the host, or among descriptors that were handed over.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::stat::fstat;
use vm_memory::GuestMemoryMmap;

use super::config::VfioConfig;
use super::handle::Handle;
use super::ioctls;
use super::iommufd::Iommufd;
use super::rom::Rom;
use super::space::{Mapped, Mappings, Space};
use super::type1::Type1;
use crate::cpr::fds::{FdName, FdTable};
use crate::devices::{DeviceError, given};

/// A device that is open.
pub struct Assigned {
    pub(super) handle: Handle,
    /// Its group, where devices come in groups.
    pub(super) group: Option<OwnedFd>,
    /// What is in its ROM, if it has one.
    pub(super) rom: Option<Rom>,
    /// Whether it was handed over as it is.
    pub(super) adopted: bool,
}

/// Opens the devices of a guest, those of one interface in one address space.
#[derive(Default)]
pub struct Opener {
    type1: Option<Arc<Type1>>,
    iommufd: Option<Arc<Iommufd>>,
    /// Its devices were handed over.
    adopted: bool,
    /// Groups that are open, by number.
    groups: BTreeMap<String, OwnedFd>,
}

/// How long a process that has given a guest away, or a handover that is cancelled, may take to let go of its devices.
const LET_GO: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(50);

/// What VFIO says of a device that is open: of its group, or of its node.
fn is_in_use(error: &io::Error) -> bool {
    [libc::EBUSY, libc::EINVAL].map(Some).contains(&error.raw_os_error())
}

fn device_name(id: &str) -> FdName {
    FdName::new(format!("{id}.device"), 0)
}

fn group_name(id: &str) -> FdName {
    FdName::new(format!("{id}.group"), 0)
}

/// Closes what was kept of a device, and of the address spaces: who opens it next finds it reset.
pub fn forget(id: &str, fds: &mut FdTable) {
    let own = [".device", ".group", ".msix", ".msi", ".intx", ".intx-unmask", ".rom", ".req", ".err"]
        .map(|what| format!("{id}{what}"));
    fds.retain(|name| !own.contains(&name.name) && !name.name.starts_with("vfio."));
}

impl Assigned {
    /// Registers (duplicates of) its descriptors.
    pub(super) fn register(&self, fds: &mut FdTable) -> Result<(), DeviceError> {
        let id = self.handle.id();
        fds.insert_dup(device_name(id), self.handle.as_fd())?;
        if let Some(group) = &self.group {
            fds.insert_dup(group_name(id), group.as_fd())?;
        }
        if let Some(rom) = &self.rom {
            rom.register(id, fds)?;
        }
        Ok(())
    }

    /// What KVM knows it by.
    pub(super) fn kvm_file(&self) -> std::os::fd::BorrowedFd<'_> {
        self.group.as_ref().map_or(self.handle.as_fd(), AsFd::as_fd)
    }
}

impl Opener {
    /// Takes a device from what was handed over.
    pub fn adopt(&mut self, id: &str, fds: &mut FdTable) -> Result<Assigned, DeviceError> {
        let file = File::from(fds.take(&device_name(id))?);
        let group = fds.take_optional(&group_name(id));
        if group.is_some() && self.type1.is_none() {
            self.type1 = Type1::adopt(fds)?.map(Arc::new);
        } else if group.is_none() && self.iommufd.is_none() {
            self.iommufd = Iommufd::adopt(fds).map(Arc::new);
        }
        let there = if group.is_some() { self.type1.is_some() } else { self.iommufd.is_some() };
        if !there {
            let expected = "the container or the IOMMUFD that it is in";
            return Err(DeviceError::unfit(id)(("a device without mappings".into(), expected.into())));
        }
        let rom = Rom::adopt(id, fds)?;
        self.adopted = true;
        Ok(Assigned { handle: Handle::new(id, file)?, group, rom, adopted: true })
    }

    /// Opens a device of the host that this guest had, by its address, once whoever looked at it has let go of it.
    pub fn open_again(&mut self, id: &str, config: &VfioConfig) -> Result<Assigned, DeviceError> {
        let (config, deadline) = (config.by_address(), Instant::now() + LET_GO);
        loop {
            match self.open(id, &config) {
                Err(DeviceError::Io { source, .. }) if is_in_use(&source) && Instant::now() < deadline => {
                    std::thread::sleep(RETRY);
                }
                opened => return opened,
            }
        }
    }

    /// Opens a device of the host.
    pub fn open(&mut self, id: &str, config: &VfioConfig) -> Result<Assigned, DeviceError> {
        let (sysfs, name) = (config.directory(), config.name());
        check_driver(id, &name, &sysfs)?;
        let cdev = cdev(&sysfs);
        let given = config.fd.is_some() || config.iommufd_fd.is_some();
        let by_iommufd = config.iommufd.unwrap_or_else(|| given || (Iommufd::is_there() && cdev.is_some()));
        let (file, group) = if by_iommufd {
            let none = || {
                let found = format!("{} without vfio-dev", sysfs.display());
                let expected = "a kernel with CONFIG_VFIO_DEVICE_CDEV, or iommufd=off";
                DeviceError::unfit(id)((found, expected.into()))
            };
            let file = match config.fd {
                Some(number) => given_device(id, config, number)?,
                None => open(id, &cdev.ok_or_else(none)?)?,
            };
            self.attach(id, config, &file)?;
            (file, None)
        } else {
            let (file, group) = self.open_in_group(id, config, &sysfs)?;
            (file, Some(group))
        };
        let handle = Handle::new(id, file)?;
        handle.reset().map_err(DeviceError::io(id, format!("resetting {name}")))?;
        let rom = Rom::read_out(&handle).unwrap_or_else(|error| {
            tracing::warn!("{id}: its ROM is left out: {error}");
            None
        });
        Ok(Assigned { handle, group, rom, adopted: false })
    }

    /// Gives a device to the IOMMUFD that all of the guest's devices share.
    fn attach(&mut self, id: &str, config: &VfioConfig, device: &File) -> Result<(), DeviceError> {
        let iommufd = match (&self.iommufd, config.iommufd_fd) {
            (Some(iommufd), None) => iommufd,
            (Some(_), Some(number)) => {
                let found = format!("descriptor {number} as another IOMMUFD");
                return Err(DeviceError::unfit(id)((
                    found,
                    "one for all devices, given with the first".into(),
                )));
            }
            (None, Some(number)) => self.iommufd.insert(Arc::new(Iommufd::given(number)?)),
            (None, None) => self.iommufd.insert(Arc::new(Iommufd::open()?)),
        };
        let added = iommufd.add(device.as_fd());
        added.map_err(DeviceError::io(id, format!("giving {} to the IOMMUFD", config.name())))
    }

    fn open_in_group(
        &mut self,
        id: &str,
        config: &VfioConfig,
        sysfs: &Path,
    ) -> Result<(File, OwnedFd), DeviceError> {
        let device = config.name();
        let link = fs::read_link(sysfs.join("iommu_group"));
        let link = link.map_err(DeviceError::io(
            id,
            format!("looking for the IOMMU group of {device} (is there an IOMMU, and is it on?)"),
        ))?;
        let number = link.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !self.groups.contains_key(&number) {
            let group = self.open_group(id, &number)?;
            self.groups.insert(number.clone(), group);
        }
        let group = &self.groups[&number];
        let name = CString::new(device.as_str()).unwrap_or_default();
        let opened = ioctls::device_of(group.as_fd(), &name);
        let opened = opened.map_err(DeviceError::io(id, format!("opening {device} of its group")))?;
        let group = group.try_clone().map_err(DeviceError::io(id, "duplicating its group's descriptor"))?;
        Ok((File::from(opened), group))
    }

    fn open_group(&mut self, id: &str, number: &str) -> Result<OwnedFd, DeviceError> {
        let path = Path::new("/dev/vfio").join(number);
        let group = OwnedFd::from(open(id, &path)?);
        let viable = ioctls::is_viable(group.as_fd());
        if !viable.map_err(DeviceError::io(id, format!("asking for the state of {}", path.display())))? {
            let found = format!("another device of {} is the host's", path.display());
            return Err(DeviceError::unfit(id)((
                found,
                "vfio-pci as the driver of all of its devices".into(),
            )));
        }
        let first = self.groups.is_empty();
        let type1 = match &self.type1 {
            Some(type1) => type1,
            None => self.type1.insert(Arc::new(Type1::open()?)),
        };
        let added = type1.add(&group, first);
        added.map_err(DeviceError::io(id, format!("putting {} in a container", path.display())))?;
        Ok(group)
    }

    /// The mappings of `memory` that the devices need: made now, or when the guest is loaded, or another process's still.
    pub fn mappings(
        self,
        memory: &Arc<GuestMemoryMmap>,
        loading: bool,
    ) -> Result<Vec<Mappings>, DeviceError> {
        let type1 = self.type1.map(|space| space as Arc<dyn Space>);
        let mapped = match (self.adopted, loading) {
            (true, _) => Mapped::Elsewhere,
            (false, true) => Mapped::OnLoad,
            (false, false) => Mapped::Now,
        };
        let spaces = type1.into_iter().chain(self.iommufd.map(|space| space as Arc<dyn Space>));
        spaces.map(|space| Mappings::new(space, Arc::clone(memory), mapped)).collect()
    }
}

/// Takes the descriptor of a device that a manager opened, which must be the one that is named.
fn given_device(id: &str, config: &VfioConfig, number: RawFd) -> Result<File, DeviceError> {
    let doing = format!("taking descriptor {number}");
    let copy = given::duplicate(number).map_err(DeviceError::io(id, doing.clone()))?;
    let node = fstat(&copy).map_err(DeviceError::io(id, doing))?.st_rdev;
    let entry = format!("/sys/dev/char/{}:{}", libc::major(node), libc::minor(node));
    let entry = fs::canonicalize(&entry).unwrap_or_else(|_| entry.into());
    // DEVICE/vfio-dev/vfio0
    let device = entry.ancestors().nth(2).and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    if device != config.name() {
        let found = format!("descriptor {number} of {}", entry.display());
        return Err(DeviceError::unfit(id)((
            found,
            format!("one of the node of {} in /dev/vfio/devices", config.name()),
        )));
    }
    // SAFETY: it was seen to be a device that was given to this process; nothing else in it has it.
    unsafe { given::close(number) };
    Ok(copy.into())
}

/// Only vfio-pci gives functions away, and the drivers that are made of it for single devices. A mediated device is nothing
/// else than given away.
fn check_driver(id: &str, name: &str, sysfs: &Path) -> Result<(), DeviceError> {
    fs::metadata(sysfs).map_err(DeviceError::io(id, format!("looking for {name}")))?;
    let link = |what| fs::read_link(sysfs.join(what)).unwrap_or_default();
    let [bus, driver] = [link("subsystem"), link("driver")];
    let [bus, driver] = [&bus, &driver].map(|path| path.file_name().unwrap_or_default().to_string_lossy());
    if bus == "mdev" || gives_away(&driver) {
        return Ok(());
    }
    let found = format!("{name} has the host's driver '{driver}'");
    let expected = "vfio-pci: write that to its driver_override, unbind it and let drivers_probe have it";
    Err(DeviceError::unfit(id)((found, expected.into())))
}

/// Whether a driver is vfio-pci or of its kin (`mlx5_vfio_pci`, `nvgrace-gpu-vfio-pci`).
fn gives_away(driver: &str) -> bool {
    let name = driver.replace('_', "-");
    name == "vfio-pci" || name.ends_with("-vfio-pci")
}

fn open(id: &str, path: &Path) -> Result<File, DeviceError> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map_err(|error: io::Error| {
        let hint = if error.raw_os_error() == Some(libc::EBUSY) { ": another process has it" } else { "" };
        DeviceError::io::<io::Error>(id, format!("opening {}{hint}", path.display()))(error)
    })
}

/// The node of a device under IOMMUFD.
fn cdev(sysfs: &Path) -> Option<PathBuf> {
    let entry = fs::read_dir(sysfs.join("vfio-dev")).ok()?.next()?.ok()?;
    Some(Path::new("/dev/vfio/devices").join(entry.file_name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_made_of_vfio_pci_give_devices_away() {
        assert!(["vfio-pci", "mlx5_vfio_pci", "nvgrace-gpu-vfio-pci"].into_iter().all(gives_away));
        assert!(!["", "nvme", "vfio", "xvfio-pci", "vfio-pci-x"].into_iter().any(gives_away));
    }
}
