//! Starts QEMU machines that do not outlive whoever started them.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use nix::sys::prctl;
use nix::sys::signal::Signal;

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
    /// Where its serial ports go, each as QEMU's `-serial` takes it.
    pub serial: &'a [String],
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
        for serial in self.serial {
            command.args(["-serial", serial]);
        }
        // SAFETY: between fork and exec the child makes one system call and allocates nothing.
        unsafe { command.pre_exec(|| prctl::set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from)) };
        command.spawn().context("starting qemu-system-x86_64 (scripts/install-deps installs it)")
    }
}
