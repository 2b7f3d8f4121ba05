//! One scenario: what the host is made of, what runs on it, what must be seen.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{disks, net};

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
    /// What is done with the guest, in this order.
    pub steps: Vec<Step>,
    /// How far what is seen may be from what is promised.
    #[serde(default)]
    pub margins: Margins,
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
    /// Which unit tests run on it before the guest is booted, by parts of their names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub units: Vec<String>,
}

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
    /// What it talks to the lab over.
    #[serde(default)]
    pub console: Terminal,
    /// Its devices, as `cpr-load boot --device` takes them.
    #[serde(default)]
    pub devices: Vec<String>,
    /// What its kernel's command line has besides what the lab needs.
    #[serde(default)]
    pub cmdline: String,
    /// What load it puts on itself: `mem`, `cpu`, `rng`.
    #[serde(default = "all_load")]
    pub load: Vec<String>,
    /// MiB of memory that it writes and verifies without end.
    #[serde(default = "pattern_mib")]
    pub pattern_mib: u32,
    /// Its disks, all of which it puts load on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
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
}

impl Default for Net {
    fn default() -> Self {
        Self { queues: 1, vhost: false }
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
            "console=ttyS0 loglevel=4 panic=-1 reboot=t guest.load={} guest.mem={} guest.console={} {}",
            self.load.join(","),
            self.pattern_mib,
            self.console.name(),
            self.cmdline
        );
        if !self.disks.is_empty() {
            let named = |(index, disk): (usize, &Disk)| {
                format!("{}{}", disks::device(index), if disk.ext4 { ":ext4" } else { "" })
            };
            let named: Vec<_> = self.disks.iter().enumerate().map(named).collect();
            words.push_str(" guest.disks=");
            words.push_str(&named.join(","));
        }
        if self.net.is_some() {
            words.push_str(" guest.net=");
            words.push_str(&net::GUEST.to_string());
        }
        if self.vsock {
            words.push_str(" guest.vsock=on");
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

/// What a guest's RAM is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backing {
    /// A memfd: no reboot step is possible.
    Memfd,
    /// A file in the host's /dev/shm.
    #[default]
    File,
}

/// How a guest is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// To another process, over a socket.
    Transfer,
    /// To a new image in the same process.
    Exec,
    /// Through a file, to a process started later.
    Reboot,
}

impl Mode {
    const ALL: [Self; 3] = [Self::Transfer, Self::Exec, Self::Reboot];
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Transfer => "transfer",
            Self::Exec => "exec",
            Self::Reboot => "reboot",
        })
    }
}

/// What is done with the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It runs undisturbed: `run SECONDS`.
    Run(Duration),
    /// It is handed over while it runs: `transfer`, `exec`, `reboot`.
    HandOver(Mode),
    /// It is paused, handed over, seen not to run, and continued: `paused MODE`.
    Paused(Mode),
    /// It is handed over so many times, in an order that has all modes: `mixed COUNT`.
    Mixed(u32),
    /// It is handed over to a process that is lost when it has all but the state, and goes on where it was: `rollback`.
    RollBack,
    /// The guest is asked to keep so many MiB of its RAM, and does: `balloon MIB`.
    Balloon(u64),
    /// It powers itself off: `poweroff`.
    PowerOff,
}

impl Step {
    /// The single steps that a step stands for.
    pub fn expand(self) -> Vec<Self> {
        let Self::Mixed(count) = self else { return vec![self] };
        // A fixed order in which each mode follows each, itself too, within the first ten.
        const ORDER: [usize; 10] = [0, 0, 1, 1, 2, 2, 0, 2, 1, 0];
        let mode = |index: u32| Mode::ALL[ORDER[index as usize % ORDER.len()]];
        (0..count).map(|index| Self::HandOver(mode(index))).collect()
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(time) => write!(f, "run {}", time.as_secs()),
            Self::HandOver(mode) => mode.fmt(f),
            Self::Paused(mode) => write!(f, "paused {mode}"),
            Self::Mixed(count) => write!(f, "mixed {count}"),
            Self::Balloon(mib) => write!(f, "balloon {mib}"),
            Self::RollBack => f.write_str("rollback"),
            Self::PowerOff => f.write_str("poweroff"),
        }
    }
}

impl FromStr for Step {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (word, argument) = text.split_once(' ').map_or((text, None), |(word, rest)| (word, Some(rest)));
        let mode = |word: &str| Mode::ALL.into_iter().find(|mode| mode.to_string() == word);
        let number = |text: Option<&str>| text.and_then(|text| text.parse().ok());
        let step = match (word, argument) {
            ("run", seconds) => number(seconds).map(|seconds| Self::Run(Duration::from_secs(seconds))),
            ("mixed", count) => number(count).map(|count| Self::Mixed(count as u32)),
            ("paused", Some(argument)) => mode(argument).map(Self::Paused),
            ("balloon", mib) => number(mib).map(Self::Balloon),
            ("rollback", None) => Some(Self::RollBack),
            ("poweroff", None) => Some(Self::PowerOff),
            (word, None) => mode(word).map(Self::HandOver),
            _ => None,
        };
        step.ok_or_else(|| {
            format!("'{text}' is no step: expected run SECONDS, MODE, paused MODE, mixed COUNT, balloon MIB, rollback or poweroff")
        })
    }
}

impl Serialize for Step {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Step {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
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
        Self { gap_ms: 1500, drift_ms: 250, disk_ms: 20_000, net_ms: 2000 }
    }
}

impl Scenario {
    /// Reads a scenario's file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is no scenario", path.display()))
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
    fn steps_are_read_and_printed_alike() {
        for text in [
            "run 10",
            "transfer",
            "exec",
            "reboot",
            "paused exec",
            "mixed 10",
            "balloon 512",
            "rollback",
            "poweroff",
        ] {
            assert_eq!(text.parse::<Step>().unwrap().to_string(), text);
        }
        for text in ["", "run", "run x", "teleport", "paused", "transfer 3", "mixed"] {
            assert!(text.parse::<Step>().is_err(), "{text}");
        }
    }

    #[test]
    fn in_ten_mixed_handovers_each_mode_follows_each() {
        let steps = Step::Mixed(10).expand();
        for first in Mode::ALL {
            for second in Mode::ALL {
                let pair = [Step::HandOver(first), Step::HandOver(second)];
                assert!(steps.windows(2).any(|window| window == pair), "{first} then {second}");
            }
        }
    }

    #[test]
    fn every_scenario_of_the_repository_is_read() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("lab");
        let mut count = 0;
        for entry in std::fs::read_dir(directory).unwrap() {
            Scenario::read(&entry.unwrap().path()).unwrap();
            count += 1;
        }
        assert!(count > 0);
    }
}
