//! Troubles of the host's: what a handover is to be refused for, by name, with the guest going on as if nothing were.
//!
//! 1. A trouble is over when its step is, however the step ends: the next handover must succeed.
//! 2. A handover that is refused says which device it is and what is wrong, and `cpr-save` that the guest is in the source.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::owner::Owner;
use super::scenario::Mode;
use super::steps::Machine;
use super::{delay, disks, faults};

/// For a guest that runs to have requests under way, and for one that is paused to have none.
const SETTLE: Duration = Duration::from_secs(1);

/// A trouble of the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Nobody can open /dev/vhost-net, then it is no vhost device: `vhost-net`.
    VhostNet,
    /// The same of /dev/vhost-vsock: `vhost-vsock`.
    VhostVsock,
    /// The first disk, a slow one, answers nothing: `stall`.
    Stall,
    /// It answers nothing once the guest is paused, when there is only to sync what it has: `sync`.
    Sync,
    /// A device of the host's is assigned, which no reboot can hand over: `assigned`.
    Assigned,
    /// A mediated device is assigned through a type 1 container, whose mappings no process can give to another: `mediated`.
    Mediated,
    /// The target fails, at each message of a transfer: `target`.
    Target,
    /// The guest's agent suspends it too late to be saved: `suspend`.
    Suspend,
    /// The target may not have the RAM pinned that assigned devices reach: `memlock`.
    Memlock,
}

impl Trouble {
    const ALL: [Self; 9] = [
        Self::VhostNet,
        Self::VhostVsock,
        Self::Stall,
        Self::Sync,
        Self::Assigned,
        Self::Mediated,
        Self::Target,
        Self::Suspend,
        Self::Memlock,
    ];

    /// Makes it, sees each handover refused that it stands in the way of, and ends it; says for how long the guest may have
    /// stood still.
    pub fn make(self, owner: &mut Owner) -> Result<Duration> {
        match self {
            Self::VhostNet => without(Path::new("/dev/vhost-net"), "virtio-net-", owner),
            Self::VhostVsock => without(Path::new("/dev/vhost-vsock"), "vhost-vsock-", owner),
            Self::Stall => stall(owner),
            Self::Sync => sync(owner),
            Self::Target => faults::each(owner),
            Self::Suspend => suspend(owner),
            Self::Memlock => memlock(owner),
            Self::Mediated => mediated(owner),
            Self::Assigned => {
                let words =
                    ["\"vfio-", "an assigned device ends with its last process", "cpr-save reboot --suspend"];
                refused(owner, Mode::Reboot, &words).map(|()| Duration::ZERO)
            }
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::VhostNet => "vhost-net",
            Self::VhostVsock => "vhost-vsock",
            Self::Stall => "stall",
            Self::Sync => "sync",
            Self::Assigned => "assigned",
            Self::Mediated => "mediated",
            Self::Target => "target",
            Self::Suspend => "suspend",
            Self::Memlock => "memlock",
        })
    }
}

impl FromStr for Trouble {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|trouble| trouble.to_string() == text).ok_or(())
    }
}

/// Tries a handover that must be refused with all of these words.
fn refused(owner: &mut Owner, mode: Mode, words: &[&str]) -> Result<()> {
    let said = owner.try_in_vain(mode)?;
    println!("  refused: {said}");
    let missing = words.iter().find(|word| !said.contains(*word));
    ensure!(missing.is_none(), "{mode} was refused without a word of {missing:?}: {said}");
    Ok(())
}

/// Found before anything is touched, in each mode.
fn mediated(owner: &mut Owner) -> Result<Duration> {
    for mode in [Mode::Transfer, Mode::Exec] {
        refused(owner, mode, &["\"vfio-type1\"", "VFIO_UPDATE_VADDR", "mediated device", "iommufd=on"])?;
    }
    Ok(Duration::ZERO)
}

/// Found while the guest runs.
fn memlock(owner: &mut Owner) -> Result<Duration> {
    owner.confined = true;
    let refused = refused(owner, Mode::Transfer, &["prepare", "RLIMIT_MEMLOCK", "CAP_IPC_LOCK"]);
    owner.confined = false;
    refused.map(|()| Duration::ZERO)
}

/// It sleeps when it was given up, and is woken.
fn suspend(owner: &mut Owner) -> Result<Duration> {
    const ON_ITS_WAY: Duration = Duration::from_mins(2);
    let since = Instant::now();
    let mut monitor = owner.monitor()?;
    let said = owner.suspend_in_vain()?;
    println!("  refused: {said}");
    ensure!(
        said.contains("did not suspend within 1 s") && said.contains("it is woken"),
        "a guest that suspends late was refused otherwise: {said}"
    );
    monitor.wait_event("WAKEUP", ON_ITS_WAY).context("the guest was given up, and fell asleep")?;
    Ok(since.elapsed())
}

/// A file of the host's that has another name for a while.
struct Away<'a> {
    path: &'a Path,
    away: PathBuf,
}

impl<'a> Away<'a> {
    fn take(path: &'a Path) -> Result<Self> {
        let away = path.with_extension("away");
        fs::rename(path, &away).with_context(|| format!("taking {} away", path.display()))?;
        Ok(Self { path, away })
    }
}

impl Drop for Away<'_> {
    fn drop(&mut self) {
        if let Err(error) = fs::rename(&self.away, self.path) {
            println!("putting {} back: {error}", self.path.display());
        }
    }
}

/// A file of the host's with `/dev/null` over it.
struct Covered<'a>(&'a Path);

impl<'a> Covered<'a> {
    fn by_null(path: &'a Path) -> Result<Self> {
        mount(Some("/dev/null"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .with_context(|| format!("covering {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Covered<'_> {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.0, MntFlags::empty()) {
            println!("uncovering {}: {error}", self.0.display());
        }
    }
}

/// Each process opens a vhost device of its own: one that cannot is refused while the guest runs.
fn without(node: &Path, device: &str, owner: &mut Owner) -> Result<Duration> {
    let name = node.display().to_string();
    for mode in [Mode::Transfer, Mode::Exec] {
        let away = Away::take(node)?;
        refused(owner, mode, &[device, &name, "No such file or directory"])?;
        drop(away);
        let covered = Covered::by_null(node)?;
        refused(owner, mode, &[device, &name, "becoming the owner"])?;
        drop(covered);
    }
    Ok(Duration::ZERO)
}

/// A disk that has not answered at the end of the stop takes the guest back, in each mode.
fn stall(owner: &mut Owner) -> Result<Duration> {
    let since = Instant::now();
    let disk = disks::nth(0);
    let stall = delay::stall(&disk)?;
    thread::sleep(SETTLE);
    for mode in [Mode::Transfer, Mode::Exec, Mode::Reboot] {
        refused(owner, mode, &[&disk, "requests without an answer from the host's disk"])?;
    }
    drop(stall);
    Ok(since.elapsed())
}

/// A disk that stops without a request under way, and then does not sync in time what it was given.
fn sync(owner: &mut Owner) -> Result<Duration> {
    let since = Instant::now();
    owner.stop()?;
    thread::sleep(SETTLE);
    let disk = disks::nth(0);
    let stall = delay::stall(&disk)?;
    refused(owner, Mode::Reboot, &[&disk, "syncing it", "not done it within 5000 ms"])?;
    ensure!(
        owner.is_paused()?,
        "the guest was paused before the handover that was refused, and is not after it"
    );
    drop(stall);
    owner.cont()?;
    Ok(since.elapsed())
}
