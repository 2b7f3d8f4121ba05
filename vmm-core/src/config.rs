//! What a guest is made of: one serde type for TOML, the command line and saved state.
//!
//! 1. [`MachineConfig`] says everything that must be the same on both sides of a handover.
//! 2. It round-trips through TOML ([`MachineConfig::from_toml`], [`MachineConfig::to_toml`]); unknown keys are refused.
//! 3. [`MachineConfig::validate`] finds what can be known to fail before anything is built.

mod chardev;
mod device;
mod memory;
mod set;
mod size;
mod uuid;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use self::chardev::ChardevConfig;
pub use self::device::DeviceConfig;
pub use self::memory::{Backing, HugePageSize, MemoryConfig};
pub use self::size::ByteSize;
pub use self::uuid::Uuid;

/// The most vCPUs a guest may have: APIC ids stay below the 8-bit xAPIC limit.
pub const MAX_CPUS: u16 = 128;

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The text is not TOML, or a key is unknown, missing or of the wrong type.
    #[error("configuration is not valid: {0}")]
    Toml(String),
    /// A value has a form that its key does not take.
    #[error("{key}: '{value}' is not valid: expected {expected}")]
    Value {
        /// The key, as the TOML and the command line name it.
        key: String,
        /// What was given.
        value: String,
        /// What would have been accepted.
        expected: String,
    },
    /// Values that are fine alone exclude each other, or one that is needed is missing.
    #[error("{0}")]
    Conflict(String),
}

/// What a guest is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MachineConfig {
    /// The guest's name; its monitor socket in the runtime directory is named after it.
    pub name: String,
    /// The guest's identity. Made at random on a cold boot when not given.
    #[serde(default = "Uuid::random")]
    pub uuid: Uuid,
    /// Number of vCPUs, 1 to [`MAX_CPUS`].
    #[serde(default = "one")]
    pub cpus: u16,
    /// What the vCPUs show of the host's features.
    #[serde(default)]
    pub cpu: CpuConfig,
    /// RAM: how much, and what it is made of.
    pub memory: MemoryConfig,
    /// What is run at a cold boot.
    #[serde(default)]
    pub boot: BootConfig,
    /// Where the serial port (COM1) goes.
    #[serde(default)]
    pub serial: ChardevConfig,
    /// Devices on the PCI bus.
    #[serde(default, rename = "device", skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceConfig>,
}

/// What the vCPUs show of the host's features.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct CpuConfig {
    /// CPUID features hidden from the guest, by name (`avx2`, `x2apic`, …). On a load: features this host is taken
    /// not to have, so that a guest that was shown them is refused.
    pub mask: Vec<String>,
    /// Whether VMX or SVM is shown, so that the guest can run guests of its own.
    pub nested: bool,
}

/// What is run at a cold boot: a kernel (with initrd and command line), or a firmware ROM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct BootConfig {
    /// A bzImage or an ELF kernel.
    pub kernel: Option<PathBuf>,
    /// An initial RAM disk for the kernel.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
    /// A ROM image, mapped so that it ends at 4 GiB; the first vCPU starts at the reset vector in it.
    pub firmware: Option<PathBuf>,
}

fn one() -> u16 {
    1
}

impl MachineConfig {
    /// Reads a configuration from TOML and checks it.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let config: Self =
            toml::from_str(text).map_err(|e| ConfigError::Toml(e.to_string().trim_end().to_owned()))?;
        config.validate()?;
        Ok(config)
    }

    /// The configuration as TOML; [`Self::from_toml`] reads it back to an equal value.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        toml::to_string(self).map_err(|e| ConfigError::Toml(e.to_string()))
    }

    /// Applies one `KEY=VALUE` of what may differ on this host (`--set`).
    ///
    /// Keys: `memory.path`, `memory.pmem`, `serial`, `cpu.mask`, `name`, and of a disk `ID.path` and `ID.changed`. Anything else is
    /// what the guest was built with, and refused.
    pub fn set(&mut self, assignment: &str) -> Result<(), ConfigError> {
        set::apply(self, assignment)
    }

    /// Gives each device the id and the slot that it keeps for all of the guest's life, if it has none yet.
    pub fn settle(&mut self) {
        device::settle(&mut self.devices, self.uuid);
    }

    /// Finds what can be known to fail before anything is built.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let name_ok = !self.name.is_empty()
            && self.name.len() <= 64
            && !self.name.starts_with('.')
            && self.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if !name_ok {
            return Err(ConfigError::Value {
                key: "name".into(),
                value: self.name.clone(),
                expected: "1 to 64 letters, digits, '-', '_' or '.', not starting with '.'".into(),
            });
        }
        if self.cpus == 0 || self.cpus > MAX_CPUS {
            return Err(ConfigError::Value {
                key: "cpus".into(),
                value: self.cpus.to_string(),
                expected: format!("1 to {MAX_CPUS}"),
            });
        }
        self.memory.validate()?;
        device::validate(&self.devices)?;
        match (&self.boot.kernel, &self.boot.firmware) {
            (Some(_), Some(_)) => {
                Err(ConfigError::Conflict("a guest boots a kernel or a firmware, not both".into()))
            }
            (None, None) => Err(ConfigError::Conflict("nothing to boot: give a kernel or a firmware".into())),
            (None, Some(_)) if self.boot.initrd.is_some() => {
                Err(ConfigError::Conflict("an initrd needs a kernel: a firmware does not take one".into()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "name = \"web\"\ncpus = 2\n[memory]\nsize = \"1G\"\n[memory.backing]\ntype = \"file\"\npath = \"/dev/shm/web\"\n[boot]\nkernel = \"/boot/vmlinuz\"\n";

    #[test]
    fn a_configuration_round_trips_through_toml() {
        let config = MachineConfig::from_toml(TEXT).unwrap();
        assert_eq!(config.memory.size.0, 1 << 30);
        assert_eq!(MachineConfig::from_toml(&config.to_toml().unwrap()).unwrap(), config);
    }

    #[test]
    fn an_unknown_key_is_refused_and_named() {
        let error = MachineConfig::from_toml(&format!("{TEXT}colour = \"red\"\n")).unwrap_err();
        assert!(error.to_string().contains("colour"), "{error}");
    }

    #[test]
    fn what_the_guest_was_built_with_cannot_be_set() {
        let mut config = MachineConfig::from_toml(TEXT).unwrap();
        assert!(config.set("cpus=4").unwrap_err().to_string().contains("cpus"));
        config.set("memory.path=/dev/shm/other").unwrap();
        assert_eq!(config.memory.backing, Backing::File { path: "/dev/shm/other".into() });
    }

    #[test]
    fn only_a_dax_device_may_be_said_to_be_persistent_memory() {
        let mut config = MachineConfig::from_toml(TEXT).unwrap();
        assert!(config.set("memory.pmem=on").is_err());
        let dax = |pmem| Backing::Dax { path: "/dev/dax0.0".into(), offset: None, pmem };
        config.memory.backing = dax(false);
        assert!(!config.to_toml().unwrap().contains("pmem"));
        config.set("memory.pmem=on").unwrap();
        assert_eq!(config.memory.backing, dax(true));
        assert!(config.set("memory.pmem=yes").is_err());
    }

    #[test]
    fn a_disk_may_lie_elsewhere_and_may_be_insisted_on_and_neither_is_kept() {
        let text = format!("{TEXT}[[device]]\ndriver = \"virtio-blk-pci\"\nid = \"a.b\"\npath = \"/a\"\n");
        let mut config = MachineConfig::from_toml(&text).unwrap();
        for wrong in ["a.b.changed=yes", "a.b.queues=2", "a.changed=accept", "changed=accept"] {
            assert!(config.set(wrong).is_err(), "{wrong}");
        }
        config.set("a.b.path=/b").unwrap();
        config.set("a.b.changed=accept").unwrap();
        let disk = |config: &MachineConfig| match &config.devices[0] {
            DeviceConfig::VirtioBlk(disk) => (disk.path.clone(), disk.accept_changed),
            other => panic!("{other:?}"),
        };
        assert_eq!(disk(&config), ("/b".into(), true));
        let saved = MachineConfig::from_toml(&config.to_toml().unwrap()).unwrap();
        assert_eq!(disk(&saved), ("/b".into(), false));
    }

    #[test]
    fn a_name_that_could_leave_the_runtime_directory_is_refused() {
        for name in ["", "../x", "a/b", ".hidden"] {
            let text = TEXT.replace("\"web\"", &format!("{name:?}"));
            assert!(MachineConfig::from_toml(&text).is_err(), "{name}");
        }
    }
}
