//! One scenario: what the host is made of, what runs on it, what must be seen.
//!
//! `guest` is what a guest is made of, `step` what is done with it.

mod guest;
mod step;

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, fs};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use vmm_core::config::ByteSize;

use super::assigned::{self, Kind, Place};
use super::dax;
use super::operator::Operation;
use super::root::Root;

pub use self::guest::{Backing, Disk, Guest, Net, Terminal};
pub use self::step::{Mode, Step};

/// One scenario, as its TOML file has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Scenario {
    /// What it shows, in one sentence.
    pub about: String,
    /// Seconds after which it has failed.
    pub bound: u64,
    /// The machine that the commands run on. Without one, the guest runs on QEMU itself.
    pub host: Option<Host>,
    /// The Linux guest.
    pub guest: Guest,
    /// Another one on the same host, which goes through the same steps at the same time. It has the first one's kernel, and
    /// no devices but assigned disks, as the first one then, or none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second: Option<Guest>,
    /// What is done with the guest, in this order.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// What the operator of a host with a root does, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub operations: Vec<Operation>,
    /// With how many guests the host goes into its next kernels, one time each, in place of all that: small ones, of which `guest`
    /// says how much RAM they have, and nothing else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outage: Vec<u16>,
    /// What is done instead in the tier `long`, where a machine has the time: more of the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub long: Option<Long>,
    /// How far what is seen may be from what is promised.
    #[serde(default)]
    pub margins: Margins,
}

/// What is done in the tier `long`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Long {
    /// With the guest.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// By the operator.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub operations: Vec<Operation>,
}

/// The machine that the commands run on.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Host {
    /// Its kernel.
    pub kernel: Kernel,
    /// Its RAM, as QEMU's `-m` takes it.
    pub memory: String,
    /// Its CPUs.
    pub cpus: u32,
    /// What its kernel's command line has besides what the lab needs.
    #[serde(default)]
    pub cmdline: String,
    /// A userland of its own, with systemd: the guests are units then, and operations are what is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
    /// Whether it goes into them with the initial RAM disk that its own tools make, and not with the lab's: the operator has it made.
    #[serde(default)]
    pub own_initrd: bool,
    /// The kernels that it goes into, one for each step `kexec`, or operation that does so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub next: Vec<Kernel>,
    /// Whether guests that the kernel keeps are left waiting under the first next kernel, and go through another one before they are loaded.
    #[serde(default)]
    pub through: bool,
    /// Whether the guest is tried with its RAM on its first disk, with ext4, before: it is refused, for it has assigned devices.
    #[serde(default)]
    pub ram_on_disk: bool,
    /// Which unit tests run on it before the guest is booted, by parts of their names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub units: Vec<String>,
}

/// A kernel, by the name that `scripts/lab-kernel` knows it by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kernel {
    /// The project's own, with everything built in.
    Lab,
    /// Debian's cloud kernel as packaged.
    DebianCloud,
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lab => "lab",
            Self::DebianCloud => "debian-cloud",
        })
    }
}

/// How far what is seen may be from what is promised. Under TCG a guest may wait for its host now and then.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Margins {
    /// A heartbeat may be missed for the downtime reported and so many milliseconds more.
    pub gap_ms: u64,
    /// A guest's clock may differ from the host's by so many milliseconds after a step.
    pub drift_ms: u64,
    /// A request to a disk may take the downtime reported and so many milliseconds more.
    pub disk_ms: u64,
    /// The network may stand still for the downtime reported and so many milliseconds more.
    pub net_ms: u64,
}

impl Default for Margins {
    fn default() -> Self {
        Self { gap_ms: 4000, drift_ms: 250, disk_ms: 20_000, net_ms: 10_000 }
    }
}

impl Scenario {
    /// The files of all that there are: those of the tier `lab`, and in a folder those of the tier `long`; by name.
    pub fn paths() -> Result<Vec<PathBuf>> {
        let lab = Path::new(env!("CARGO_MANIFEST_DIR")).join("lab");
        let mut paths = Vec::new();
        for folder in [lab.join("long"), lab] {
            let entries = fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
            paths.extend(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()));
        }
        paths.sort_by(|one, other| one.file_name().cmp(&other.file_name()));
        Ok(paths)
    }

    /// Reads a scenario's file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let scenario: Self =
            toml::from_str(&text).with_context(|| format!("{} is no scenario", path.display()))?;
        let at_length = scenario.clone().at_length();
        for scenario in [&scenario, &at_length] {
            scenario.check(path)?;
        }
        let next = scenario.host.as_ref().map_or(0, |host| host.next.len());
        ensure!(
            next == scenario.outage.len().max(scenario.kexecs()).max(at_length.kexecs()),
            "{}: a host has as many next kernels as it needs in one tier or the other",
            path.display()
        );
        Ok(scenario)
    }

    /// The scenario as the tier `long` has it: the same, if that has nothing of its own.
    #[must_use]
    pub fn at_length(mut self) -> Self {
        if let Some(Long { steps, operations }) = self.long.take() {
            (self.steps, self.operations) = (steps, operations);
        }
        self
    }

    /// How often steps and operations load another kernel for the host.
    fn kexecs(&self) -> usize {
        self.steps.iter().filter(|step| **step == Step::Kexec).count()
            + self.operations.iter().filter(|operation| operation.loads_a_kernel()).count()
    }

    /// Whether it can be run.
    fn check(&self, path: &Path) -> Result<()> {
        if !self.outage.is_empty() {
            return self.check_outage(path);
        }
        ensure!(
            self.guest.root.is_none() || self.guest.console == Terminal::Virtio,
            "{}: a guest with a root has its own console on the serial port: give it console = \"virtio\"",
            path.display()
        );
        ensure!(
            !self.guest.agent || self.guest.console == Terminal::Virtio,
            "{}: a guest's agent is on a port of its virtio console: give it console = \"virtio\"",
            path.display()
        );
        ensure!(
            self.host.is_some() || self.guest.net.as_ref().is_none_or(|net| net.card.is_none()),
            "{}: a card is assigned by a host: give the scenario one",
            path.display()
        );
        let beside = |guest: &Guest| {
            let mut before = true;
            guest.assigned.iter().any(|disk| std::mem::replace(&mut before, disk.beside) && disk.beside)
        };
        ensure!(
            !beside(&self.guest) && !self.second.as_ref().is_some_and(beside),
            "{}: a disk that is beside another comes after one that is not",
            path.display()
        );
        if let Some(second) = &self.second {
            let virtio = |guest: &Guest| guest.root.is_some() || !guest.disks.is_empty();
            let bridged = self.is_bridged();
            let other = |guest: &Guest| {
                guest.net.is_some() && !bridged
                    || guest.vsock
                    || guest.edu.is_some()
                    || !guest.devices.is_empty()
            };
            let first = &self.guest;
            ensure!(
                self.host.is_some()
                    && !other(first)
                    && !other(second)
                    && !virtio(second)
                    && (second.assigned.is_empty() || !virtio(first) && !first.assigned.is_empty())
                    && first.kernel == second.kernel,
                "{}: two guests are on a host, and have one kernel; the second has assigned disks, as the first then, or no devices",
                path.display()
            );
        }
        ensure!(
            self.assigned().is_empty()
                || self.guest.agent
                || !self.steps.iter().flat_map(|step| step.expand()).any(Step::reboots),
            "{}: an assigned device does not outlive a reboot: give the guest an agent, or live COUNT, not mixed COUNT or reboot",
            path.display()
        );
        let kexecs = self.kexecs();
        let has_root = self.host.as_ref().is_some_and(|host| host.root.is_some());
        ensure!(
            has_root == self.steps.is_empty() && has_root != self.operations.is_empty(),
            "{}: a host with a root has operations, and any other steps",
            path.display()
        );
        let next = self.host.as_ref().map_or(0, |host| host.next.len());
        let may_kexec = self.guest.net.as_ref().is_none_or(|net| net.card.is_none())
            && self.second.as_ref().is_none_or(|second| second.net.is_none())
            && !self.guest.vsock
            && (self.assigned().is_empty() || self.guest.agent)
            && self.second.as_ref().is_none_or(|second| {
                (second.backing, second.live_update) == (self.guest.backing, self.guest.live_update)
            });
        ensure!(
            kexecs <= next && (kexecs == 0) == (next == 0) && (next == 0 || may_kexec),
            "{}: a host has a next kernel for each kexec, and then its guests have one backing, are saved alike, and have no network, AF_VSOCK, or device of its without an agent",
            path.display()
        );
        Ok(())
    }

    /// Whether a scenario that is about an outage can be run.
    fn check_outage(&self, path: &Path) -> Result<()> {
        let next = self.host.as_ref().map_or(0, |host| host.next.len());
        ensure!(
            next == self.outage.len() && self.outage[0] > 0 && self.outage.is_sorted(),
            "{}: an outage has a next kernel for each kexec, and never fewer guests than before",
            path.display()
        );
        ensure!(
            self.steps.is_empty()
                && self.operations.is_empty()
                && self.second.is_none()
                && self.guest.live_update,
            "{}: an outage has no steps, no operations and no second guest, and its guests are live-updated",
            path.display()
        );
        Ok(())
    }

    /// All devices of the host's that are assigned, and where they are: the first guest's, then the second's.
    pub fn assigned(&self) -> Vec<(Place, Kind)> {
        let mut all = Vec::new();
        for guest in std::iter::once(&self.guest).chain(&self.second) {
            let first = all.len();
            let kinds = assigned::kinds(guest).into_iter().enumerate();
            all.extend(kinds.map(|(index, kind)| (assigned::place(guest, first, index), kind)));
        }
        all
    }

    /// The scenario as the second guest goes through it.
    pub fn of_second(&self) -> Option<Self> {
        let guest = self.second.clone()?;
        Some(Self { guest, second: None, ..self.clone() })
    }

    /// Whether the guest's network reaches over a bridge of the host's to a peer outside, for it outlives the host's kernel.
    pub fn is_bridged(&self) -> bool {
        self.guest.net.is_some() && self.host.as_ref().is_some_and(|host| !host.next.is_empty())
    }

    /// MiB of each DAX device that there is to be: of a guest's RAM, or of all guests' in one with their stamps.
    pub fn in_dax(&self) -> Vec<u64> {
        let guests = std::iter::once(&self.guest).chain(&self.second);
        let mut devices = Vec::new();
        for guest in guests.filter(|guest| guest.backing == Backing::Dax) {
            let Ok(ByteSize(bytes)) = guest.memory.parse() else { continue };
            let mib = bytes >> 20;
            match (guest.dax_offset_mib.map(|offset| offset + mib + dax::UNIT_MIB), devices.last_mut()) {
                (None, _) => devices.push(mib),
                (Some(end), None) => devices.push(end),
                (Some(end), Some(shared)) => *shared = end.max(*shared),
            }
        }
        devices
    }

    /// The bound as a duration.
    pub fn bound(&self) -> Duration {
        Duration::from_secs(self.bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assigned_disk_is_under_load_after_all_others_and_is_never_rebooted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.toml");
        let scenario = |step: &str| {
            let guest = "kernel = 'lab'\ncpus = 1\nmemory = '1G'\ndisks = [{ size-mib = 1 }]\nassigned = [{ size-mib = 64, ext4 = true }]\n";
            fs::write(&path, format!("about = 'x'\nbound = 1\nsteps = ['{step}']\n[guest]\n{guest}"))
                .unwrap();
            Scenario::read(&path)
        };
        let cmdline = scenario("live 4").unwrap().guest.cmdline();
        assert!(cmdline.ends_with(" guest.disks=vda,nvme0n1:ext4"), "{cmdline}");
        for step in ["mixed 10", "reboot", "paused reboot"] {
            assert!(scenario(step).unwrap_err().to_string().contains("live COUNT"), "{step}");
        }
    }

    #[test]
    fn a_guest_with_a_root_talks_to_the_lab_over_a_virtio_console() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.toml");
        let scenario = "about = 'x'\nbound = 1\nsteps = ['reboot']\n[guest]\nkernel = 'lab'\ncpus = 1\nmemory = '1G'\nroot = 'debian'\n";
        fs::write(&path, scenario).unwrap();
        assert!(Scenario::read(&path).unwrap_err().to_string().contains("console = \"virtio\""));
        fs::write(&path, format!("{scenario}console = 'virtio'\n")).unwrap();
        assert_eq!(Scenario::read(&path).unwrap().guest.root, Some(Root::Debian));
    }

    #[test]
    fn an_outage_has_a_next_kernel_for_each_kexec_and_never_fewer_guests() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.toml");
        let scenario = |outage: &str| {
            let host = "kernel = 'lab'\nnext = ['lab', 'lab']\nmemory = '3G'\ncpus = 1\n";
            let guest = "kernel = 'lab'\ncpus = 1\nmemory = '32M'\nlive-update = true\n";
            fs::write(
                &path,
                format!("about = 'x'\nbound = 1\noutage = {outage}\n[host]\n{host}[guest]\n{guest}"),
            )
            .unwrap();
            Scenario::read(&path)
        };
        assert_eq!(scenario("[1, 4]").unwrap().outage, [1, 4]);
        for outage in ["[1]", "[4, 1]", "[0, 1]", "[1, 4, 16]"] {
            assert!(scenario(outage).unwrap_err().to_string().contains("never fewer guests"), "{outage}");
        }
    }

    #[test]
    fn every_scenario_of_the_repository_is_read() {
        let paths = Scenario::paths().unwrap();
        assert!(paths.iter().any(|path| path.parent().unwrap().ends_with("long")));
        for path in paths {
            Scenario::read(&path).unwrap();
        }
    }
}
