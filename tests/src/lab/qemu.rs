//! Starts QEMU machines that do not outlive whoever started them.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::assigned::Place;

/// A QEMU machine under TCG that boots a Linux kernel.
pub struct Machine<'a> {
    /// Its CPUs.
    pub cpus: u32,
    /// Its RAM, as QEMU's `-m` takes it.
    pub memory: &'a str,
    /// A bzImage.
    pub kernel: &'a Path,
    /// An initial RAM disk.
    pub initrd: &'a Path,
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// The images of its disks. What is flushed need not outlive the machine that the lab runs on.
    pub disks: &'a [PathBuf],
    /// Its NVMe disks: where each is, and its image.
    pub nvme: &'a [(Place, PathBuf)],
    /// Whether it has an IOMMU, so that these can be assigned.
    pub iommu: bool,
    /// The tap that its network card is on.
    pub tap: Option<&'a str>,
    /// Where its serial ports go, each as QEMU's `-serial` takes it.
    pub serial: &'a [String],
    /// The socket that its virtio console listens at, if it has one.
    pub console: Option<&'a Path>,
    /// What else it is made by.
    pub others: &'a [String],
}

/// One of the processors that this process may use, another for each of several that run at the same time.
///
/// With nested virtualization under TCG, QEMU 10.0's CPU threads trip over each other when they really run at once: the
/// host or its guest ends in a triple fault within seconds, without any handover. Taking turns on one processor they do not.
fn one_processor() -> io::Result<CpuSet> {
    let ours = sched_getaffinity(Pid::from_raw(0))?;
    let usable: Vec<usize> = (0..CpuSet::count()).filter(|cpu| ours.is_set(*cpu).unwrap_or(false)).collect();
    let mut one = CpuSet::new();
    if let Some(cpu) = usable.get(std::process::id() as usize % usable.len().max(1)) {
        one.set(*cpu)?;
    }
    Ok(one)
}

impl Machine<'_> {
    /// Starts it; its standard output is a pipe, its messages go to ours. It ends when this thread does.
    pub fn start(&self) -> Result<Child> {
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args([
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                "max",
                "-smp",
                &self.cpus.to_string(),
                "-m",
                self.memory,
            ])
            .args(["-nodefaults", "-display", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.initrd)
            .args(["-append", self.cmdline])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        if self.iommu {
            // It comes before the devices behind it.
            command.args(["-machine", "q35,kernel-irqchip=split"]);
            command.args(["-device", "intel-iommu,intremap=on,caching-mode=on"]);
        }
        for serial in self.serial {
            command.args(["-serial", serial]);
        }
        if let Some(socket) = self.console {
            let socket = format!("socket,id=console,server=on,wait=on,path={}", socket.display());
            command.args(["-chardev", &socket, "-device", "virtio-serial-pci"]);
            command.args(["-device", "virtconsole,chardev=console"]);
        }
        for (index, image) in self.disks.iter().enumerate() {
            let drive = format!("if=none,id=disk{index},format=raw,cache=unsafe,file={}", image.display());
            let device = format!("virtio-blk-pci,drive=disk{index}");
            command.args(["-drive", &drive, "-device", &device]);
        }
        for (index, (place, image)) in self.nvme.iter().enumerate() {
            let drive = format!("if=none,id=nvme{index},format=raw,cache=unsafe,file={}", image.display());
            let alone = self.nvme.iter().all(|(other, _)| other == place || !other.shares_its_slot(*place));
            let (addr, several) = (place.addr(), if alone { "off" } else { "on" });
            let device =
                format!("nvme,drive=nvme{index},serial=lab{index},addr={addr},multifunction={several}");
            command.args(["-drive", &drive, "-device", &device]);
        }
        if let Some(tap) = self.tap {
            let net = format!("tap,id=net0,ifname={tap},script=no,downscript=no");
            command.args(["-netdev", &net, "-device", "virtio-net-pci,netdev=net0"]);
        }
        command.args(self.others);
        let one = one_processor()?;
        let begin = move || {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            sched_setaffinity(Pid::from_raw(0), &one).map_err(io::Error::from)
        };
        // SAFETY: between fork and exec the child makes two system calls and allocates nothing.
        unsafe { command.pre_exec(begin) };
        command.spawn().context("starting qemu-system-x86_64 (scripts/install-deps installs it)")
    }
}
