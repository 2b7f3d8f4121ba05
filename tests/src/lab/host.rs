//! Runs a scenario's host in QEMU, watches it from outside and gives up at the bound.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::peer::{Peer, STEP_MARK};
use super::report::Report;
use super::root::Root;
use super::scenario::{Host, Scenario};
use super::watch::{self, Seen, Watched};
use super::{assigned, dax, disks, image, kexec, operator, peer, qemu};

/// Runs a scenario on its host; its files and the host's console are kept in `directory`.
pub fn run(scenario: &Scenario, host: &Host, directory: &Path) -> Result<Report> {
    let (host_kernel, guest_kernel) = (image::kernel(host.kernel)?, image::kernel(scenario.guest.kernel)?);
    let (host_initrd, guest_initrd) = (directory.join("host.cpio"), directory.join("guest.cpio"));
    image::guest(&guest_initrd, &guest_kernel, &scenario.guest)?;
    // A host with a root of its own has what its guests have for disks on that.
    let (mut images, roots) = match host.root {
        Some(root) => (Vec::new(), vec![root_disk(directory, root)?]),
        None => (disks::make(directory, &scenario.guest)?, Vec::new()),
    };
    let firsts = images.len();
    if let Some(second) = scenario.second.as_ref().filter(|_| host.root.is_none()) {
        let directory = directory.join("second");
        fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
        images.extend(disks::make(&directory, second)?);
    }
    let virtio = if host.root.is_some() { 0 } else { disks::virtio(&scenario.guest) };
    let (disks, nvme) = images.split_at(virtio);
    let nvme = assigned::placed(scenario, nvme);
    let iommu = !scenario.assigned().is_empty();
    image::host(&host_initrd, scenario, &host_kernel, &guest_kernel, &guest_initrd)?;
    let disks =
        [&roots, disks, kexec::disk(directory, scenario, &guest_kernel, &guest_initrd)?.as_slice()].concat();
    let dax = dax::cmdline(&scenario.in_dax());
    let console = directory.join("console.log");
    let mut others = assigned::others(&scenario.guest);
    if scenario.is_bridged() {
        others.extend(peer::prepare()?);
    }
    let machine = qemu::Machine {
        cpus: host.cpus,
        memory: &host.memory,
        kernel: &host_kernel,
        initrd: &host_initrd,
        cmdline: &[watch::CMDLINE, if iommu { assigned::CMDLINE } else { "" }, &dax, &host.cmdline].join(" "),
        disks: &disks,
        nvme: &nvme,
        iommu,
        tap: None,
        serial: &[format!("file:{}", console.display()), "stdio".into()],
        console: None,
        others: &others,
    };
    let deadline = Instant::now() + scenario.bound();
    if host.root.is_some() {
        let ends = scenario.operations.iter().filter(|operation| operation.ends_the_machine()).count();
        return operator::outside::run(&machine, ends, deadline, &console);
    }
    let watched = Watched::start(&machine)?;
    let peer = scenario.is_bridged().then(|| Peer::start(deadline));
    let (mut report, mut seen) = (None, Vec::new());
    let ending = loop {
        match watched.next(deadline) {
            Ok(Seen::Report(json)) => {
                report = Some(serde_json::from_str::<Report>(&json).context("reading the report")?);
            }
            Ok(Seen::Line(line)) => match (line.split_once(STEP_MARK), &peer) {
                (Some((_, step)), Some(peer)) => seen.extend(peer.take(step)),
                _ => println!("{line}"),
            },
            Err(RecvTimeoutError::Disconnected) => break "the host ended without a report",
            Err(RecvTimeoutError::Timeout) => break "the bound was reached",
        }
    };
    // Its disks are looked at when it has ended.
    drop(watched);
    let (firsts, seconds) = images.split_at(firsts);
    let second = scenario.second.iter().flat_map(|second| disks::check(second, seconds));
    let file_systems = disks::check(&scenario.guest, firsts).into_iter().chain(second).collect();
    match report {
        Some(report) => Ok(Report { file_systems, peer: seen, ..report }),
        None => bail!("{ending}; its console is in {}", console.display()),
    }
}

/// The disk with a host's root.
fn root_disk(directory: &Path, root: Root) -> Result<PathBuf> {
    let path = directory.join("root.img");
    root.copy(&path)?;
    Ok(path)
}
