//! The initial RAM disks of the lab's host and of its guest.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use guest_init::early;

use super::cpio::Cpio;
use super::scenario::{Guest, Kernel, Scenario};
use super::{assigned, modules, units};
use crate::harness::host::binary;

/// What a test guest needs besides what its kernel has built in: the power button, and the drivers of its devices.
const GUEST_MODULES: [&str; 6] =
    ["evdev", "button", "virtio_pci", "virtio_rng", "virtio_console", "virtio_balloon"];
/// What a machine with disks needs besides.
const DISK_MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"];
/// What a host needs besides what its kernel has built in.
const HOST_MODULES: [&str; 2] = ["kvm_amd", "kvm_intel"];
/// What a machine with a network needs besides.
const NET_MODULES: [&str; 4] = ["virtio_pci", "virtio_net", "tun", "vhost_net"];

/// What a machine with an NVMe disk needs besides, and a host that assigns it.
const ASSIGNED_MODULES: [&str; 5] = ["nvme", "crc32c_generic", "ext4", "vfio_iommu_type1", "vfio_pci"];
/// What a host needs that has memory set aside, which is a DAX device.
const DAX_MODULES: [&str; 4] = ["nd_e820", "nd_pmem", "dax_pmem", "device_dax"];
/// What a userland of its own needs besides: systemd mounts some file systems when they are first used.
const ROOT_MODULES: [&str; 1] = ["autofs4"];
/// What a machine with AF_VSOCK sockets needs besides.
const VSOCK_MODULES: [&str; 3] = ["virtio_pci", "vmw_vsock_virtio_transport", "vhost_vsock"];

/// Where the host's RAM disk has the guest's kernel.
pub const GUEST_KERNEL: &str = "/guest/kernel";
/// Where the host's RAM disk has the guest's RAM disk.
pub const GUEST_INITRD: &str = "/guest/initrd";
/// Where the host's RAM disk has the scenario.
pub const SCENARIO: &str = "/scenario.toml";
/// Where the host's RAM disk has what `scripts/install` installs, and that itself.
pub const SCRIPTS: &str = "/scripts";
/// What that is.
pub const INSTALLED: [&str; 12] = [
    "install",
    "host-upgrade",
    "resume-early",
    "systemd/cpr@.service",
    "systemd/cpr-early-stop.service",
    "systemd/cpr-report.service",
    "systemd/stop-early",
    "systemd/stop-guest",
    "initramfs-tools/hooks/cpr",
    "initramfs-tools/scripts/init-top/cpr",
    "dracut/90cpr/module-setup.sh",
    "dracut/90cpr/cpr-early.service",
];
/// Where the host's RAM disk has the two commands.
pub const COMMANDS: &str = "/bin";

/// The image of a kernel, fetched or built by `scripts/lab-kernel` if it is not at hand.
pub fn kernel(kernel: Kernel) -> Result<PathBuf> {
    script("lab-kernel", &kernel.to_string())
}

/// The path of what one of the repository's scripts has at hand, or makes, by the name that the script knows it by.
pub fn script(name: &str, what: &str) -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts").join(name);
    let output = Command::new(&script)
        .arg(what)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("running {}", script.display()))?;
    let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() || path.is_empty() {
        bail!("{} {what} ended with {}", script.display(), output.status);
    }
    Ok(path.into())
}

/// Writes the guest's RAM disk: the guest program is its init.
pub fn guest(path: &Path, guest_kernel: &Path, guest: &Guest) -> Result<()> {
    let mut archive = create(path)?;
    archive.file("init", &program(&binary("guest-init")?)?)?;
    add_modules(&mut archive, guest_kernel, &modules_of(guest, &GUEST_MODULES))?;
    archive.finish().with_context(|| format!("writing {}", path.display()))
}

/// Writes the host's RAM disk: this program is its init, and all that the scenario needs lies beside it.
pub fn host(
    path: &Path,
    scenario: &Scenario,
    host_kernel: &Path,
    guest_kernel: &Path,
    guest_initrd: &Path,
) -> Result<()> {
    let mut archive = create(path)?;
    archive.file("init", &program(&std::env::current_exe().context("finding this program")?)?)?;
    archive.directory("guest")?;
    archive.file(GUEST_KERNEL, &fs::read(guest_kernel)?)?;
    archive.file(GUEST_INITRD, &fs::read(guest_initrd)?)?;
    archive.file(SCENARIO, toml::to_string(scenario)?.as_bytes())?;
    archive.directory("bin")?;
    for command in ["cpr-load", "cpr-save"] {
        archive.file(&format!("{COMMANDS}/{command}"), &program(&binary(command)?)?)?;
    }
    if scenario.host.as_ref().is_some_and(|host| host.root.is_some()) {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts");
        archive.directory(SCRIPTS)?;
        for file in INSTALLED {
            // The kernel passes over a directory that is there.
            let folders: Vec<_> =
                Path::new(file).ancestors().skip(1).filter(|path| path.parent().is_some()).collect();
            for folder in folders.iter().rev() {
                archive.directory(&format!("{SCRIPTS}/{}", folder.display()))?;
            }
            let path = scripts.join(file);
            let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            archive.file(&format!("{SCRIPTS}/{file}"), &bytes)?;
        }
    }
    if scenario.host.as_ref().is_some_and(|host| !host.units.is_empty()) {
        archive.file(units::UNITS, &program(&units::build()?)?)?;
    }
    let mut modules = modules_of(&scenario.guest, &HOST_MODULES);
    if !scenario.in_dax().is_empty() {
        modules.extend(DAX_MODULES);
    }
    if scenario.host.as_ref().is_some_and(|host| !host.next.is_empty()) {
        // What outlives its kernel lies on a disk.
        modules.extend(DISK_MODULES);
    }
    if scenario.host.as_ref().is_some_and(|host| host.root.is_some()) {
        modules.extend(ROOT_MODULES);
    }
    if scenario.is_bridged() {
        modules.push("bridge");
    }
    add_modules(&mut archive, host_kernel, &modules)?;
    archive.finish().with_context(|| format!("writing {}", path.display()))
}

/// A program, without what only a debugger needs of it: that is most of it, and an emulated machine is slow to read it.
fn program(path: &Path) -> Result<Vec<u8>> {
    let stripped = tempfile::NamedTempFile::new().context("making a file")?;
    let status = Command::new("strip").arg("-o").arg(stripped.path()).arg(path).status();
    ensure!(status.context("running strip")?.success(), "strip could not read {}", path.display());
    fs::read(stripped.path()).with_context(|| format!("reading {} without its symbols", path.display()))
}

/// The modules that are always needed, and those that the guest's devices need.
fn modules_of(guest: &Guest, always: &[&'static str]) -> Vec<&'static str> {
    let mut names = always.to_vec();
    if !guest.disks.is_empty() || guest.root.is_some() {
        names.extend(DISK_MODULES);
    }
    if !assigned::kinds(guest).is_empty() {
        names.extend(ASSIGNED_MODULES);
    }
    if guest.root.is_some() {
        names.extend(ROOT_MODULES);
    }
    if guest.net.is_some() {
        names.extend(NET_MODULES);
    }
    if guest.vsock {
        names.extend(VSOCK_MODULES);
    }
    names
}

/// Begins a RAM disk in a file.
pub fn create(path: &Path) -> Result<Cpio<BufWriter<File>>> {
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    Ok(Cpio::new(BufWriter::new(file))?)
}

fn add_modules(archive: &mut Cpio<BufWriter<File>>, kernel: &Path, names: &[&str]) -> Result<()> {
    let Some(directory) = modules::directory(kernel) else { return Ok(()) };
    archive.directory(early::MODULES)?;
    for (index, path) in modules::with_dependencies(&directory, names)?.iter().enumerate() {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        archive.file(&format!("{}/{index:02}-{name}", early::MODULES), &modules::content(path)?)?;
    }
    Ok(())
}
