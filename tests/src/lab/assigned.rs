//! Devices of the host's that are assigned to the guest: where they are, what they are called, how they are asked for.
//!
//! A guest on QEMU itself has them as its own, at the same places: it tries the guest program with such devices.

use std::fmt::{self, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::net;
use super::scenario::{Guest, Scenario};

/// The slot of the first. QEMU gives lower ones to devices that ask for none.
const FIRST_SLOT: usize = 0x10;

/// Where a device is, on the host's first bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    slot: usize,
    function: usize,
}

impl Place {
    /// As QEMU takes it.
    pub fn addr(self) -> String {
        format!("{:#x}.{}", self.slot, self.function)
    }

    /// Whether they are functions of one device.
    pub fn shares_its_slot(self, other: Self) -> bool {
        self.slot == other.slot
    }
}

impl fmt::Display for Place {
    /// As the kernel names it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0000:00:{:02x}.{}", self.slot, self.function)
    }
}

/// What a host's kernel is booted with for its devices to be assigned.
pub const CMDLINE: &str = "intel_iommu=on iommu=pt";

/// A disk of the host's that is assigned to the guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Assigned {
    /// Its size in MiB.
    pub size_mib: u64,
    /// Whether it has an ext4 file system, mounted all along; otherwise its blocks are used as they are.
    #[serde(default)]
    pub ext4: bool,
    /// Whether it is assigned through IOMMUFD, or through a type 1 container. Not said: through what the host has.
    pub iommufd: Option<bool>,
    /// Whether the lab opens it, and the IOMMUFD, and gives `cpr-load` their descriptors.
    #[serde(default)]
    pub given: bool,
    /// Whether it is another function of the device before it: the IOMMU has both in one group.
    #[serde(default)]
    pub beside: bool,
}

/// What can be assigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An NVMe disk, with MSI-X.
    Nvme,
    /// QEMU's educational device: DMA that takes its time, INTx or MSI.
    Edu,
    /// A network card.
    Card(Card),
}

impl Kind {
    /// The driver that Linux has for it.
    pub fn driver(self) -> Option<&'static str> {
        match self {
            Self::Nvme => Some("nvme"),
            Self::Edu => None,
            Self::Card(Card::E1000e) => Some("e1000e"),
            Self::Card(Card::VirtioNet) => Some("virtio-pci"),
        }
    }
}

/// A network card of the host's. It is on a wire with another, which the host keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Card {
    /// Intel's 82574L.
    E1000e,
    /// A virtio network device whose DMA goes through the IOMMU.
    VirtioNet,
}

impl Card {
    /// What QEMU makes it by: the wire, the card at the slot, and the host's own end.
    pub fn arguments(self, place: Place) -> Vec<String> {
        let mac = net::mac();
        let device = match self {
            Self::E1000e => "e1000e",
            Self::VirtioNet => "virtio-net-pci,disable-legacy=on,iommu_platform=on",
        };
        [
            ("-netdev", "hubport,id=wire0,hubid=0".to_owned()),
            ("-device", format!("{device},netdev=wire0,mac={mac},addr={}", place.addr())),
            ("-netdev", "hubport,id=wire1,hubid=0".to_owned()),
            ("-device", format!("virtio-net-pci,netdev=wire1,mac={}", net::HOST_MAC)),
        ]
        .into_iter()
        .flat_map(|(option, value)| [option.to_owned(), value])
        .collect()
    }
}

/// The educational device of a guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Edu {
    /// How its interrupts come.
    pub wires: Wires,
    /// As for a disk.
    pub iommufd: Option<bool>,
}

/// How interrupts come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wires {
    /// By the device's pin.
    Intx,
    /// By messages.
    Msi,
}

impl Wires {
    /// What the guest is told.
    pub fn name(self) -> &'static str {
        match self {
            Self::Intx => "intx",
            Self::Msi => "msi",
        }
    }
}

/// All devices that are assigned to a guest: disks, the educational one, a network card.
pub fn kinds(guest: &Guest) -> Vec<Kind> {
    let disks = guest.assigned.iter().map(|_| Kind::Nvme);
    disks.chain(guest.edu.iter().map(|_| Kind::Edu)).chain(card(guest).map(Kind::Card)).collect()
}

fn card(guest: &Guest) -> Option<Card> {
    guest.net.as_ref()?.card
}

/// What QEMU makes the educational device and the network card by, if the guest has them. The first reaches memory below
/// 4 GiB.
pub fn others(guest: &Guest) -> Vec<String> {
    let edu = place(guest, 0, guest.assigned.len()).addr();
    let edu = guest.edu.as_ref().map(|_| ["-device".into(), format!("edu,addr={edu},dma_mask=0xffffffff")]);
    let last = place(guest, 0, kinds(guest).len().saturating_sub(1));
    edu.into_iter()
        .flatten()
        .chain(card(guest).map(|card| card.arguments(last)).into_iter().flatten())
        .collect()
}

/// Whether each of them is assigned through IOMMUFD, if it is said.
pub fn interfaces(guest: &Guest) -> impl Iterator<Item = Option<bool>> {
    let disks = guest.assigned.iter().map(|disk| disk.iommufd);
    disks.chain(guest.edu.iter().map(|edu| edu.iommufd)).chain(card(guest).map(|_| None))
}

/// How `cpr-load boot` is asked for all of them, which are the host's from this one on.
pub fn arguments(guest: &Guest, first: usize) -> impl Iterator<Item = String> {
    interfaces(guest).enumerate().map(move |(index, iommufd)| {
        let mut argument = format!("--device=vfio-pci,host={}", place(guest, first, index));
        if let Some(iommufd) = iommufd {
            let _ = write!(argument, ",iommufd={}", if iommufd { "on" } else { "off" });
        }
        argument
    })
}

/// The place of a guest's device with this index, whose devices are the host's from this one on.
pub fn place(guest: &Guest, first: usize, index: usize) -> Place {
    let function = usize::from(guest.assigned.get(index).is_some_and(|disk| disk.beside));
    Place { slot: FIRST_SLOT + first + index - function, function }
}

/// Images of the NVMe disks that are assigned, each with its place.
pub fn placed(scenario: &Scenario, images: &[PathBuf]) -> Vec<(Place, PathBuf)> {
    let nvme = scenario.assigned().into_iter().filter(|(_, kind)| *kind == Kind::Nvme);
    nvme.map(|(place, _)| place).zip(images.iter().cloned()).collect()
}

/// The block device of the NVMe disk with this index, in the guest.
pub fn block_device(index: usize) -> String {
    format!("nvme{index}n1")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argument(more: &str) -> String {
        let device = format!("assigned = [{{ size-mib = 64{more} }}]");
        let guest: Guest =
            toml::from_str(&format!("kernel = 'lab'\ncpus = 1\nmemory = '1G'\n{device}")).unwrap();
        arguments(&guest, 0).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn cpr_load_is_told_how_to_assign_a_device_only_if_the_scenario_says() {
        assert_eq!(argument(""), "--device=vfio-pci,host=0000:00:10.0");
        assert_eq!(argument(", iommufd = true"), "--device=vfio-pci,host=0000:00:10.0,iommufd=on");
        let two = argument(", iommufd = false }]\nedu = { wires = 'intx' }\n#");
        assert_eq!(
            two,
            "--device=vfio-pci,host=0000:00:10.0,iommufd=off --device=vfio-pci,host=0000:00:11.0"
        );
    }
}
