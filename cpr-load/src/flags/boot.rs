//! `boot` and `start`: a configuration from a file, from flags, or from a file that flags override.

use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::Args;
use vmm_core::config::{
    BootConfig, ChardevConfig, CpuConfig, DeviceConfig, MachineConfig, MemoryConfig, Uuid,
};

use super::incoming::Lazy;

/// A guest that is to be booted.
#[derive(Debug, PartialEq, Eq)]
pub struct Boot {
    /// What it is made of; valid.
    pub config: MachineConfig,
    /// Where its monitor listens; `None`: the runtime directory.
    pub monitor: Option<PathBuf>,
    /// Whether it waits for `cont` before its first instruction.
    pub paused: bool,
    /// Whether a saved guest that waits in its RAM may be lost.
    pub discard_saved: bool,
}

/// A guest that is to go on if it was saved, and else to be booted.
#[derive(Debug, PartialEq, Eq)]
pub struct Start {
    /// How it is booted.
    pub boot: Boot,
    /// The directory in which its state would be, if not in memory.
    pub saved: PathBuf,
    /// Whether it may run before all of its RAM is read from there.
    pub lazy: bool,
}

#[derive(Args)]
pub(super) struct StartFlags {
    #[command(flatten)]
    boot: Flags,
    /// The directory in which NAME.state is looked for; luo:NAME is looked for, too
    #[arg(long, value_name = "dir:PATH", value_parser = directory)]
    saved: PathBuf,
    #[command(flatten)]
    lazy: Lazy,
}

pub(super) fn directory(text: &str) -> Result<PathBuf, String> {
    match text.strip_prefix("dir:") {
        None | Some("") => Err("expected dir:PATH".into()),
        Some(path) => std::path::absolute(path).map_err(|error| error.to_string()),
    }
}

impl StartFlags {
    pub(super) fn check(self) -> anyhow::Result<Start> {
        Ok(Start { boot: self.boot.check()?, saved: self.saved, lazy: self.lazy.lazy })
    }
}

#[derive(Args)]
pub(super) struct Flags {
    /// A TOML file with the guest's configuration; flags override what it says
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The guest's name
    #[arg(long, required_unless_present = "config")]
    name: Option<String>,
    /// The guest's identity [default: random]
    #[arg(long)]
    uuid: Option<Uuid>,
    /// Number of vCPUs [default: 1]
    #[arg(long, value_name = "N")]
    cpus: Option<u16>,
    /// RAM: `size=…[,backing=memfd|hugetlb|file|dax][,page-size=2M|1G][,path=…][,pmem=on|off]`
    #[arg(long, value_name = "size=…", required_unless_present = "config")]
    memory: Option<MemoryConfig>,
    /// A bzImage or an ELF kernel
    #[arg(long, value_name = "FILE", conflicts_with = "firmware")]
    kernel: Option<PathBuf>,
    /// An initial RAM disk for the kernel
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// A ROM image that ends at 4 GiB; the first vCPU starts at the reset vector in it
    #[arg(long, value_name = "FILE")]
    firmware: Option<PathBuf>,
    /// Where the serial port goes: null, stdio, pty, file:PATH or unix:PATH [default: null]
    #[arg(long, value_name = "TO")]
    serial: Option<ChardevConfig>,
    /// A device on the PCI bus, added to the file's: `virtio-{rng,balloon,blk,net,serial}-pci`, `vhost-vsock-pci` or `vfio-pci`, with `id=ID`, `addr=SLOT` and its own keys
    #[arg(long = "device", value_name = "DRIVER[,KEY=VALUE…]")]
    devices: Vec<DeviceConfig>,
    /// CPU features hidden from the guest
    #[arg(long, value_name = "FEATURE,…", value_delimiter = ',')]
    cpu_mask: Option<Vec<String>>,
    /// Let the guest run guests of its own
    #[arg(long)]
    nested: bool,
    /// Where the monitor listens [default: NAME.sock in the runtime directory]
    #[arg(long, value_name = "PATH")]
    monitor: Option<PathBuf>,
    /// Wait for `cont` before the first instruction
    #[arg(long)]
    paused: bool,
    /// Boot in RAM in which a saved guest waits for its state file to be loaded, too: that guest is lost; or where one waits as luo:NAME
    #[arg(long)]
    discard_saved: bool,
}

impl Flags {
    pub(super) fn check(self) -> anyhow::Result<Boot> {
        let mut config = match &self.config {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("reading configuration {}", path.display()))?;
                MachineConfig::from_toml(&text).with_context(|| path.display().to_string())?
            }
            None => MachineConfig {
                name: self.name.clone().ok_or_else(|| anyhow!("--name is missing"))?,
                uuid: Uuid::random(),
                cpus: 1,
                cpu: CpuConfig::default(),
                memory: self.memory.clone().ok_or_else(|| anyhow!("--memory is missing"))?,
                boot: BootConfig::default(),
                serial: ChardevConfig::default(),
                devices: Vec::new(),
            },
        };
        // A kernel takes the place of the file's firmware, and the other way round.
        if self.kernel.is_some() {
            config.boot.firmware = None;
        }
        if self.firmware.is_some() {
            (config.boot.kernel, config.boot.initrd) = (None, None);
        }
        replace(&mut config.name, self.name);
        replace(&mut config.uuid, self.uuid);
        replace(&mut config.cpus, self.cpus);
        replace(&mut config.cpu.mask, self.cpu_mask);
        config.cpu.nested |= self.nested;
        replace(&mut config.memory, self.memory);
        replace(&mut config.boot.kernel, self.kernel.map(Some));
        replace(&mut config.boot.initrd, self.initrd.map(Some));
        replace(&mut config.boot.cmdline, self.cmdline);
        replace(&mut config.boot.firmware, self.firmware.map(Some));
        replace(&mut config.serial, self.serial);
        config.devices.extend(self.devices);
        config.validate()?;
        Ok(Boot { config, monitor: self.monitor, paused: self.paused, discard_saved: self.discard_saved })
    }
}

fn replace<T>(value: &mut T, by: Option<T>) {
    if let Some(by) = by {
        *value = by;
    }
}
