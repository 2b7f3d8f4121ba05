//! A mediated device of the host's: the kernel's sample of one, a serial card without hardware (Documentation/driver-api/
//! vfio-mediated-device.rst).

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::commands::until;

/// Where the kernel makes one, with one port.
const CREATE: &str = "/sys/class/mdev_bus/mtty/mdev_supported_types/mtty-1/create";
/// Which this one is.
const UUID: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";

/// A mediated device of a guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Mediated {
    /// Whether it is assigned through IOMMUFD, which can hand it over, or through a type 1 container, which cannot.
    pub iommufd: bool,
}

impl Mediated {
    /// Makes it; gives what `cpr-load boot` is asked for it by.
    pub fn make(&self) -> Result<String> {
        let device = Path::new("/sys/bus/mdev/devices").join(UUID);
        if !device.exists() {
            fs::write(CREATE, UUID).with_context(|| format!("writing {UUID} to {CREATE}"))?;
            until("the mediated device", || Ok(device.exists().then_some(())))?;
        }
        let iommufd = if self.iommufd { "on" } else { "off" };
        Ok(format!("--device=vfio-pci,sysfsdev={},iommufd={iommufd}", device.display()))
    }
}
