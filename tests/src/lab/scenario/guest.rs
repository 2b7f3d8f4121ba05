//! What a guest is made of.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Kernel;
use crate::lab::assigned::{self, Assigned, Card, Edu};
use crate::lab::mediated::Mediated;
use crate::lab::root::Root;
use crate::lab::{disks, net};

/// The Linux guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Guest {
    /// Its kernel.
    pub kernel: Kernel,
    /// Its vCPUs.
    pub cpus: u32,
    /// Its RAM, as `cpr-load boot --memory size=` takes it.
    pub memory: String,
    /// What its RAM is made of.
    #[serde(default)]
    pub backing: Backing,
    /// Where its RAM begins, in MiB, in the DAX device that it shares with the other guest; without, it has one of its own.
    pub dax_offset_mib: Option<u64>,
    /// Whether it is saved to memory that the host's next kernel finds, and its RAM with it.
    #[serde(default)]
    pub live_update: bool,
    /// A userland of its own, on a disk before all others; its console is the serial port.
    pub root: Option<Root>,
    /// What it talks to the lab over.
    #[serde(default)]
    pub console: Terminal,
    /// Its devices, as `cpr-load boot --device` takes them.
    #[serde(default)]
    pub devices: Vec<String>,
    /// What its kernel's command line has besides what the lab needs.
    #[serde(default)]
    pub cmdline: String,
    /// Whether it runs before all of its RAM is read, wherever that was in its file.
    #[serde(default)]
    pub lazy: bool,
    /// Whether it has an agent, by which it is suspended whenever it is saved.
    #[serde(default)]
    pub agent: bool,
    /// What load it puts on itself: `mem`, `cpu`, `rng`.
    #[serde(default = "all_load")]
    pub load: Vec<String>,
    /// MiB of memory that it writes and verifies without end.
    #[serde(default = "pattern_mib")]
    pub pattern_mib: u32,
    /// Its disks, all of which it puts load on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
    /// Devices of the host's that are assigned to it, its disks last of all, and under load as the others are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub assigned: Vec<Assigned>,
    /// QEMU's educational device, if the host has one and assigns it.
    pub edu: Option<Edu>,
    /// A mediated device of the host's, if the host makes one and assigns it.
    pub mediated: Option<Mediated>,
    /// Its network, if it has one, which is pinged and holds a TCP stream.
    pub net: Option<Net>,
    /// Whether it has AF_VSOCK sockets, over which a stream is held.
    #[serde(default)]
    pub vsock: bool,
}

/// A network of the guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Net {
    /// Pairs of queues.
    pub queues: u16,
    /// Whether the host's kernel moves the packets.
    pub vhost: bool,
    /// It is a card of the host's that is assigned to the guest.
    pub card: Option<Card>,
}

impl Default for Net {
    fn default() -> Self {
        Self { queues: 1, vhost: false, card: None }
    }
}

/// A disk of the guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Disk {
    /// Its size in MiB.
    pub size_mib: u64,
    /// Whether it has an ext4 file system, mounted all along; otherwise its blocks are used as they are.
    #[serde(default)]
    pub ext4: bool,
    /// Milliseconds that the host takes more for each request; its page cache, which would hide that, is passed by.
    #[serde(default)]
    pub delay_ms: u64,
}

impl Guest {
    /// The command line that its kernel is booted with.
    pub fn cmdline(&self) -> String {
        let mut words = format!(
            "console=ttyS0 loglevel=4 panic=0 reboot=t guest.load={} guest.mem={} guest.console={} {}",
            self.load.join(","),
            self.pattern_mib,
            self.console.name(),
            self.cmdline
        );
        if self.root.is_some() {
            // All that systemd says of its starting, and what a kernel says that is kept waiting, would take a slow serial
            // port minutes.
            words.push_str(" loglevel=1 systemd.show_status=error guest.root=");
            words.push_str(disks::ROOT);
        }
        let named = |device: String, ext4: bool| if ext4 { device + ":ext4" } else { device };
        let virtio = |(index, disk): (usize, &Disk)| named(disks::device(self, index), disk.ext4);
        let nvme = |(index, disk): (usize, &Assigned)| named(assigned::block_device(index), disk.ext4);
        let virtio = self.disks.iter().enumerate().map(virtio);
        let all: Vec<_> = virtio.chain(self.assigned.iter().enumerate().map(nvme)).collect();
        if !all.is_empty() {
            words.push_str(" guest.disks=");
            words.push_str(&all.join(","));
        }
        if self.net.is_some() {
            words.push_str(" guest.net=");
            words.push_str(&net::GUEST.to_string());
        }
        if self.vsock {
            words.push_str(" guest.vsock=on");
        }
        if let Some(edu) = &self.edu {
            words.push_str(" guest.edu=");
            words.push_str(edu.wires.name());
        }
        if self.agent && self.root.is_none() {
            words.push_str(" guest.agent=on");
        }
        if self.mediated.is_some() {
            words.push_str(" guest.mediated=on");
        }
        words
    }
}

/// What a guest talks to the lab over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Terminal {
    /// The serial port.
    #[default]
    Serial,
    /// A virtio console.
    Virtio,
}

impl Terminal {
    /// Its name in the guest.
    fn name(self) -> &'static str {
        match self {
            Self::Serial => "ttyS0",
            Self::Virtio => "hvc0",
        }
    }
}

fn all_load() -> Vec<String> {
    vec!["mem".into(), "cpu".into()]
}

fn pattern_mib() -> u32 {
    256
}

/// What a guest's RAM is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backing {
    /// A memfd: in a reboot it is copied into the file.
    Memfd,
    /// A file in the host's /dev/shm.
    #[default]
    File,
    /// Memory that the host sets aside, and its next kernel, too.
    Dax,
}

impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memfd => "memfd",
            Self::File => "file",
            Self::Dax => "dax",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_the_first_disk_and_what_is_under_load_comes_after() {
        let guest = "kernel = 'lab'\ncpus = 1\nmemory = '1G'\nconsole = 'virtio'\ndisks = [{ size-mib = 1 }, { size-mib = 1, ext4 = true }]\n";
        let words = |more: &str| toml::from_str::<Guest>(&format!("{guest}{more}")).unwrap().cmdline();
        assert!(words("").ends_with(" guest.disks=vda,vdb:ext4"));
        let with_root = words("root = 'debian'");
        assert!(with_root.contains(" guest.root=vda guest.disks=vdb,vdc:ext4"), "{with_root}");
    }
}
