//! Runs the guest on QEMU itself: it tries the guest program and the lab, not the product.

use std::path::Path;
use std::process::Child;
use std::time::Duration;

use anyhow::{Result, bail};

use super::console::Console;
use super::getty::Getty;
use super::report::Report;
use super::scenario::{Mode, Scenario, Terminal};
use super::steps::{self, HandOver, Machine, exit};
use super::trouble::Trouble;
use super::{assigned, disks, image, net, qemu};

struct Alone(Child);

/// Runs a scenario that has no host; its files are kept in `directory`.
pub fn run(scenario: &Scenario, directory: &Path) -> Result<Report> {
    let kernel = image::kernel(scenario.guest.kernel)?;
    let initrd = directory.join("guest.cpio");
    image::guest(&initrd, &kernel, &scenario.guest)?;
    let images = disks::make(directory, &scenario.guest)?;
    let (disks, nvme) = images.split_at(disks::virtio(&scenario.guest));
    if let Some(net) = &scenario.guest.net {
        net::prepare(net)?;
    }
    // A socket's path must be short, whatever the directory's is.
    let runtime = tempfile::tempdir()?;
    let (socket, tty) = (runtime.path().join("serial"), runtime.path().join("tty"));
    let virtio = scenario.guest.console == Terminal::Virtio;
    let serial = if virtio { &tty } else { &socket };
    let devices = scenario.guest.devices.iter().flat_map(|device| ["-device".to_owned(), device.clone()]);
    let others: Vec<_> = devices.chain(assigned::others(&scenario.guest)).collect();
    let machine = qemu::Machine {
        cpus: scenario.guest.cpus,
        memory: &scenario.guest.memory,
        kernel: &kernel,
        initrd: &initrd,
        cmdline: &scenario.guest.cmdline(),
        disks,
        nvme: &assigned::placed(scenario, nvme),
        iommu: false,
        tap: scenario.guest.net.as_ref().map(|_| net::TAP),
        serial: &[format!("unix:{},server=on,wait={}", serial.display(), if virtio { "off" } else { "on" })],
        console: virtio.then_some(&socket),
        others: &others,
    };
    let mut alone = Alone(machine.start()?);
    let console = Console::connect(&socket, &directory.join("console.log"))?;
    let getty = scenario.guest.root.map(|_| Getty::connect(&tty, &directory.join("tty.log")));
    let mut report = steps::run(scenario, &mut alone, &console, getty.transpose()?.as_ref(), None, None);
    drop(alone);
    report.file_systems = disks::check(&scenario.guest, &images);
    Ok(report)
}

impl Machine for Alone {
    fn hand_over(&mut self, mode: Mode) -> Result<HandOver> {
        bail!("{mode} needs a host in the scenario")
    }

    fn save(&mut self) -> Result<()> {
        bail!("a kexec needs a host in the scenario")
    }

    fn name(&self) -> &'static str {
        "alone"
    }

    fn roll_back(&mut self) -> Result<HandOver> {
        bail!("a handover that fails needs a host in the scenario")
    }

    fn refuse(&mut self, trouble: Trouble) -> Result<Duration> {
        bail!("{trouble} needs a host in the scenario")
    }

    fn wanted(&mut self) -> Result<()> {
        bail!("without a host nobody asks for a device back")
    }

    fn failed(&mut self) -> Result<()> {
        bail!("without a host no device of the host's fails")
    }

    fn orphan(&mut self) -> Result<Duration> {
        bail!("a source that dies needs a host in the scenario")
    }

    fn balloon(&mut self, _bytes: u64) -> Result<()> {
        bail!("a balloon needs a host in the scenario")
    }

    fn stop(&mut self) -> Result<()> {
        bail!("a pause needs a host in the scenario")
    }

    fn cont(&mut self) -> Result<()> {
        bail!("a pause needs a host in the scenario")
    }

    fn sleeps(&mut self) -> Result<()> {
        bail!("sleep needs a host in the scenario")
    }

    fn wake(&mut self) -> Result<()> {
        bail!("sleep needs a host in the scenario")
    }

    fn wakes(&mut self) -> Result<()> {
        bail!("sleep needs a host in the scenario")
    }

    fn is_paused(&self) -> Result<bool> {
        Ok(false)
    }

    fn ended(&mut self, within: Duration) -> Result<bool> {
        match exit(&mut self.0, within)? {
            Some(status) if !status.success() => bail!("QEMU ended with {status}"),
            status => Ok(status.is_some()),
        }
    }

    fn descriptors(&self) -> Option<u64> {
        None
    }

    fn locked(&self) -> Option<u64> {
        None
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
