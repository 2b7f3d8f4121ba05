//! A root of one's own, for processes that are started in an initial RAM disk and outlive it.
//!
//! 1. Whoever changes a host's root moves what is mounted at `/proc`, `/sys`, `/dev` and `/run` to the new one, and then removes all files of
//!    the old one; where a directory is removed, the kernel takes away what is mounted on it, in every mount namespace.
//! 2. So a process that is to live on is in a namespace of its own, and its root there is none of the files that are removed: a file
//!    system in memory, with those four and this program. It goes when the last of these processes ends.
//! 3. No other file is reached from there, and none is made there.

use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, chroot};
use vmm_core::monitor::paths;

/// Its name where it is made, which nobody else sees: in the runtime directory.
const DIRECTORY: &str = "shelter";
/// What of the host is seen from there.
const SEEN: [&str; 4] = ["/proc", "/sys", "/dev", "/run"];
/// This program, there.
const PROGRAM: &str = "/cpr-load";
/// It has room for this program, however it was built.
const OPTIONS: &str = "mode=0755,size=256M";

/// Executes this program again from a root of its own, to resume these guests.
pub fn enter(names: &[String]) -> anyhow::Result<Infallible> {
    let doing = "leaving the initial RAM disk";
    make().context(doing)?;
    let error = Command::new(PROGRAM).arg("early").arg("--").args(names).exec();
    Err(error).with_context(|| format!("executing {PROGRAM}")).context(doing)
}

fn make() -> anyhow::Result<()> {
    let none = None::<&str>;
    let at = paths::make_runtime_dir().context("making the runtime directory")?.join(DIRECTORY);
    unshare(CloneFlags::CLONE_NEWNS).context("making a mount namespace")?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("keeping its mounts to itself")?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&at)
        .with_context(|| format!("making {}", at.display()))?;
    let alone = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), &at, Some("tmpfs"), alone, Some(OPTIONS))
        .with_context(|| format!("mounting a tmpfs at {}", at.display()))?;
    let program = at.join(PROGRAM.trim_start_matches('/'));
    // Its mode goes along.
    fs::copy("/proc/self/exe", &program)
        .with_context(|| format!("copying this program to {}", program.display()))?;
    for seen in SEEN {
        let to = at.join(seen.trim_start_matches('/'));
        fs::create_dir(&to).with_context(|| format!("making {}", to.display()))?;
        // What is mounted in /run is not for these processes; this would be, too.
        let all = if seen == "/run" { MsFlags::empty() } else { MsFlags::MS_REC };
        mount(Some(seen), &to, none, MsFlags::MS_BIND | all, none)
            .with_context(|| format!("mounting {seen} at {}", to.display()))?;
    }
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | alone;
    mount(none, &at, none, read_only, none).context("making it read-only")?;
    become_root(&at).context("making it the root")
}

/// Makes a directory that something is mounted on the root.
fn become_root(at: &Path) -> nix::Result<()> {
    chdir(at)?;
    // What the initial RAM disk's root is cannot be pivoted from.
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    chroot(".")?;
    chdir("/")
}
