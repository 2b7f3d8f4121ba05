//! Gives a host to its own init, with the commands, the units and the guests' configurations installed.

use std::convert::Infallible;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use guest_init::early;
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use super::{KEPT, LAB};
use crate::lab::image::{COMMANDS, GUEST_INITRD, GUEST_KERNEL, INSTALLED, SCENARIO, SCRIPTS};
use crate::lab::init::{self, REPORT_PORT};
use crate::lab::paths::{GUESTS, serial, serial_log};
use crate::lab::scenario::{Backing, Guest, Scenario, Terminal};
use crate::lab::{dax, disks, kexec, paths};

/// Where the host's root is mounted before it becomes the root.
const ROOT: &str = "/root";
const UNITS: &str = "/etc/systemd/system";
const SERVICE: &str = "lab.service";
/// What is given up after 90 seconds elsewhere may still come on an emulated host.
const PATIENCE: &str = "[Manager]\nDefaultTimeoutStartSec=300\nDefaultDeviceTimeoutSec=300\n";

/// A path under the root that is to be.
fn at(path: impl AsRef<Path>) -> PathBuf {
    Path::new(ROOT).join(path.as_ref().strip_prefix("/").unwrap_or(path.as_ref()))
}

/// Gives this process, which began at a time of its kernel's clock, to the init of the host's root. Its disk comes first, that of what
/// outlives the kernel second.
pub fn enter(scenario: &Scenario, started: Duration) -> Result<Infallible> {
    for index in 0..scenario.in_dax().len() {
        dax::make(index)?;
    }
    fs::create_dir_all(ROOT)?;
    let mount_disk = |before: usize, to: &Path| {
        fs::create_dir_all(to)?;
        let node = Path::new("/dev").join(disks::nth(before));
        mount(Some(&node), to, Some("ext4"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mounting {}", node.display()))
    };
    mount_disk(0, Path::new(ROOT))?;
    mount_disk(1, &at(kept(scenario)))?;
    let installed = at(LAB).join("installed");
    if !installed.exists() {
        install(scenario)?;
        prepare(scenario)?;
        fs::write(installed, "")?;
        nix::unistd::sync();
    }
    init::keep_started(&at(LAB), started)?;
    Ok(early::switch_root(ROOT)?)
}

/// Where the disk is mounted that has what outlives the kernel.
fn kept(scenario: &Scenario) -> &'static str {
    if scenario.outage.is_empty() { KEPT } else { kexec::KEPT }
}

/// The guests that are units, each with its name.
fn units(scenario: &Scenario) -> impl Iterator<Item = (&'static str, &Guest)> {
    let guests = std::iter::once(&scenario.guest).chain(&scenario.second);
    GUESTS.into_iter().zip(guests).filter(|_| scenario.outage.is_empty())
}

/// What a package, and whoever made the guests, would have done.
fn install(scenario: &Scenario) -> Result<()> {
    let lab = Path::new(LAB);
    let mut copies = vec![
        (PathBuf::from("/proc/self/exe"), lab.join("lab")),
        (GUEST_KERNEL.into(), lab.join("guest/kernel")),
        (GUEST_INITRD.into(), lab.join("guest/initrd")),
        (SCENARIO.into(), lab.join("scenario.toml")),
    ];
    for entry in fs::read_dir(COMMANDS)?.flatten().filter(|entry| entry.path().is_file()) {
        copies.push((entry.path(), lab.join("bin").join(entry.file_name())));
    }
    copies.extend(INSTALLED.map(|file| (Path::new(SCRIPTS).join(file), lab.join("scripts").join(file))));
    for (from, to) in copies {
        let to = at(to);
        fs::create_dir_all(to.parent().unwrap_or(Path::new(ROOT)))?;
        fs::copy(&from, &to).with_context(|| format!("copying {}", from.display()))?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
    }
    in_root("/bin/bash", &[&format!("{LAB}/scripts/install"), "--binaries", &format!("{LAB}/bin")])?;
    for (name, guest) in units(scenario) {
        fs::write(at(format!("/etc/cpr/{name}.toml")), configuration(name, guest))?;
        for (index, disk) in guest.disks.iter().enumerate() {
            let path = disk_of(name, index);
            in_root("/bin/truncate", &["-s", &format!("{}M", disk.size_mib), &path])?;
            if disk.ext4 {
                in_root("/sbin/mke2fs", &["-q", "-F", "-t", "ext4", &path])?;
            }
        }
        in_root("/bin/systemctl", &["enable", &format!("cpr@{name}.service")])?;
    }
    if scenario.guest.backing == Backing::Memfd && !scenario.guest.live_update {
        fs::write(at("/etc/default/cpr"), "CPR_COPY_RAM=1\n")?;
    }
    Ok(())
}

/// Runs a program of the root's.
fn in_root(program: &str, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(program);
    command.args(arguments).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let enter = || {
        chroot(ROOT)?;
        chdir("/").map_err(io::Error::from)
    };
    // SAFETY: between fork and exec the child makes two system calls and allocates nothing.
    unsafe { command.pre_exec(enter) };
    let status = command.status().with_context(|| format!("starting {program}"))?;
    ensure!(status.success(), "{program} {} ended with {status}", arguments.join(" "));
    Ok(())
}

fn disk_of(name: &str, index: usize) -> String {
    format!("{KEPT}/{name}-disk{index}.img")
}

/// A guest's configuration file.
fn configuration(name: &str, guest: &Guest) -> String {
    let offset = guest.dax_offset_mib.map_or_else(String::new, |mib| format!(", offset = '{mib}M'"));
    let path = paths::ram(name, guest)
        .map_or_else(String::new, |ram| format!(", path = '{}'{offset}", ram.display()));
    let backing = format!("{{ type = '{}'{path} }}", guest.backing);
    let (socket, log) = (serial(name), serial_log(name));
    let (port, console) = match guest.console {
        Terminal::Serial => (format!("unix:{}", socket.display()), String::new()),
        Terminal::Virtio => {
            let console =
                format!("[[device]]\ndriver = 'virtio-serial-pci'\nconsole = 'unix:{}'\n", socket.display());
            (format!("file:{}", log.display()), console)
        }
    };
    let disks = (0..guest.disks.len())
        .map(|index| format!("[[device]]\ndriver = 'virtio-blk-pci'\npath = '{}'\n", disk_of(name, index)));
    format!(
        "name = '{name}'\ncpus = {}\nserial = '{port}'\n[memory]\nsize = '{}'\nbacking = {backing}\n[boot]\nkernel = '{LAB}/guest/kernel'\n\
         initrd = '{LAB}/guest/initrd'\ncmdline = '{}'\n{console}{}",
        guest.cpus,
        guest.memory,
        guest.cmdline(),
        disks.collect::<String>()
    )
}

/// What goes with the host itself: the operator's service, the patience that a slow machine needs, and the disk that is mounted by its
/// own init where the lab's has not done it.
fn prepare(scenario: &Scenario) -> Result<()> {
    let kept = kept(scenario);
    let wants = format!("{UNITS}/multi-user.target.wants");
    let manager = "/etc/systemd/system.conf.d";
    for directory in [wants.as_str(), manager] {
        fs::create_dir_all(at(directory))?;
    }
    fs::write(at(manager).join("10-lab.conf"), PATIENCE)?;
    let guests: Vec<_> = units(scenario).map(|(name, _)| format!("cpr@{name}.service")).collect();
    let guests = guests.join(" ");
    // It is started before the guests, and stopped after them.
    let service = format!(
        "[Unit]\nDescription=The operator\nBefore=cpr-early-stop.service {guests}\nRequiresMountsFor={kept}\n\n[Service]\nExecStart={LAB}/lab operate\n\
         StandardOutput=file:{REPORT_PORT}\nStandardError=file:{REPORT_PORT}\nKillMode=process\nTimeoutStopSec=300\n"
    );
    fs::write(at(UNITS).join(SERVICE), service)?;
    symlink(format!("../{SERVICE}"), at(&wants).join(SERVICE))?;
    let mut table =
        fs::OpenOptions::new().append(true).open(at("/etc/fstab")).context("opening /etc/fstab")?;
    writeln!(table, "/dev/{} {kept} ext4 defaults 0 0", disks::nth(1))?;
    Ok(())
}
