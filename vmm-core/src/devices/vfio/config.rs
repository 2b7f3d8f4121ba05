//! What it is made with.

use std::fmt;
use std::os::fd::RawFd;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A PCI function of the host, as sysfs names it (`0000:00:04.0`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciAddress {
    domain: u16,
    bus: u8,
    slot: u8,
    function: u8,
}

impl FromStr for PciAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (domain, rest) = match text.matches(':').count() {
                1 => ("0", text),
                _ => text.split_once(':')?,
            };
            let (bus, rest) = rest.split_once(':')?;
            let (slot, function) = rest.split_once('.')?;
            let number = |word| u16::from_str_radix(word, 16).ok();
            Some(Self {
                domain: number(domain)?,
                bus: number(bus)?.try_into().ok()?,
                slot: number(slot)?.try_into().ok().filter(|slot| *slot < 32)?,
                function: number(function)?.try_into().ok().filter(|function| *function < 8)?,
            })
        };
        parse().ok_or_else(|| format!("a PCI address as in 0000:00:04.0 for host, not '{text}'"))
    }
}

impl TryFrom<String> for PciAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<PciAddress> for String {
    fn from(address: PciAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, slot, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{slot:02x}.{function}")
    }
}

/// Where sysfs has PCI functions, by their addresses.
const DEVICES: &str = "/sys/bus/pci/devices";

/// A device of the host (`vfio-pci`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VfioConfig {
    /// Its id in the machine; made from driver and slot when not given.
    pub id: Option<String>,
    /// Its PCI slot in the guest, 1 to 31; the lowest free one when not given.
    pub addr: Option<u8>,
    /// Which it is. The host's driver for it must be vfio-pci, or one of its kin.
    pub host: Option<PciAddress>,
    /// The same by its directory in sysfs: for a mediated device, which has no address.
    pub sysfsdev: Option<PathBuf>,
    /// By IOMMUFD, or by a type 1 container; when not given, by IOMMUFD where the host has it.
    pub iommufd: Option<bool>,
    /// Its descriptor (of `/dev/vfio/devices/…`), which a manager opened and gave by its number. By IOMMUFD then.
    pub fd: Option<RawFd>,
    /// The IOMMUFD of the guest's devices, given like that; this process opens one when it is not given.
    pub iommufd_fd: Option<RawFd>,
}

impl VfioConfig {
    /// The same device, opened by its address.
    #[must_use]
    pub fn by_address(&self) -> Self {
        Self { fd: None, iommufd_fd: None, ..self.clone() }
    }

    /// Where it is in sysfs.
    pub(super) fn directory(&self) -> PathBuf {
        match (&self.sysfsdev, &self.host) {
            (Some(path), _) => path.clone(),
            (None, Some(address)) => Path::new(DEVICES).join(address.to_string()),
            (None, None) => DEVICES.into(),
        }
    }

    /// What the kernel calls it: an address, or the UUID of a mediated device.
    pub(super) fn name(&self) -> String {
        self.directory().file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Finds what can be known to fail before anything is opened; says what was found, and what is expected.
    pub fn validate(&self) -> Result<(), (String, &'static str)> {
        let sysfs = |path: &PathBuf| {
            path.starts_with("/sys") && !path.components().any(|part| part == Component::ParentDir)
        };
        match (&self.host, &self.sysfsdev) {
            (Some(_), None) => {}
            (None, Some(path)) if sysfs(path) => {}
            (None, Some(path)) => {
                let expected = "its directory below /sys, as in /sys/bus/mdev/devices/UUID";
                return Err((format!("sysfsdev={}", path.display()), expected));
            }
            (Some(_), Some(_)) => return Err(("host and sysfsdev".into(), "one of them")),
            (None, None) => return Err(("neither host nor sysfsdev".into(), "one of them")),
        }
        let given: Vec<_> = self.fd.into_iter().chain(self.iommufd_fd).collect();
        if given.iter().any(|fd| *fd < 3) || (self.fd.is_some() && self.fd == self.iommufd_fd) {
            return Err((format!("descriptors {given:?}"), "different numbers from 3 on"));
        }
        if !given.is_empty() && self.iommufd == Some(false) {
            return Err(("fd or iommufd-fd with iommufd=off".into(), "iommufd=on, or neither of them"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_with_and_without_its_domain() {
        for text in ["0000:00:04.0", "00:04.0", "0:0:4.0"] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), "0000:00:04.0");
        }
        assert_eq!("abcd:fe:1f.7".parse::<PciAddress>().unwrap().to_string(), "abcd:fe:1f.7");
    }

    #[test]
    fn descriptors_are_given_for_iommufd_only_and_once_each() {
        let refused = |text: &str| {
            let config: VfioConfig = toml::from_str(&format!("host = '0:4.0'\n{text}")).unwrap();
            config.validate().err().map(|(found, _)| found)
        };
        assert_eq!(refused("fd = 9\niommufd-fd = 8"), None);
        assert_eq!(refused("iommufd = true\niommufd-fd = 8"), None);
        assert!(refused("fd = 2").unwrap().contains("[2]"));
        assert!(refused("fd = 9\niommufd-fd = 9").unwrap().contains("[9, 9]"));
        assert!(refused("fd = 9\niommufd = false").unwrap().contains("iommufd=off"));
    }

    #[test]
    fn a_device_is_said_by_its_address_or_by_its_directory() {
        let config = |text: &str| toml::from_str::<VfioConfig>(text).unwrap();
        let refused = |text: &str| config(text).validate().err().map(|(found, _)| found);
        let uuid = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
        let mediated = format!("sysfsdev = '/sys/bus/mdev/devices/{uuid}'");
        assert_eq!((refused(&mediated), config(&mediated).name()), (None, uuid.to_owned()));
        assert_eq!(config("host = '0:4.0'").name(), "0000:00:04.0");
        assert!(refused("").unwrap().contains("neither"));
        assert!(refused(&format!("{mediated}\nhost = '0:4.0'")).unwrap().contains("and"));
        for path in ["/dev/vfio/1", "sys/bus", "/sys/../dev/vfio"] {
            assert!(refused(&format!("sysfsdev = '{path}'")).unwrap().contains(path));
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in
            ["", "4", "00:20.0", "00:04.8", "00:04", "1:2:3:4.0", "00/../04.0", "10000:00:04.0", "100:04.0"]
        {
            assert!(text.parse::<PciAddress>().is_err(), "{text}");
        }
    }
}
