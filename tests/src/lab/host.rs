//! Runs a scenario's host in QEMU, watches it from outside and gives up at the bound.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::inside::REPORT_MARK;
use super::report::Report;
use super::scenario::{Host, Scenario};
use super::{disks, image, qemu};

/// Runs a scenario on its host; its files and the host's console are kept in `directory`.
pub fn run(scenario: &Scenario, host: &Host, directory: &Path) -> Result<Report> {
    let (host_kernel, guest_kernel) = (image::kernel(host.kernel)?, image::kernel(scenario.guest.kernel)?);
    let (host_initrd, guest_initrd) = (directory.join("host.cpio"), directory.join("guest.cpio"));
    image::guest(&guest_initrd, &guest_kernel, &scenario.guest)?;
    let disks = disks::make(directory, &scenario.guest)?;
    image::host(&host_initrd, scenario, &host_kernel, &guest_kernel, &guest_initrd)?;
    let console = directory.join("console.log");
    let machine = qemu::Machine {
        cpus: host.cpus,
        memory: &host.memory,
        kernel: &host_kernel,
        initrd: &host_initrd,
        // A host that is kept waiting takes a wrong TSC rate at its start, and later for a fault of the TSC what is its own
        // delay: without the tolerance a guest's TSC may then stand still, and without `tsc=reliable` the host gives it up.
        cmdline: &format!(
            "console=ttyS0 loglevel=6 panic=-1 kvm.tsc_tolerance_ppm=100000 tsc=reliable {}",
            host.cmdline
        ),
        disks: &disks,
        tap: None,
        serial: &[format!("file:{}", console.display()), "stdio".into()],
        devices: &[],
    };
    let deadline = Instant::now() + scenario.bound();
    let mut qemu = machine.start()?;
    let output = qemu.stdout.take().context("QEMU has no standard output")?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let started = Instant::now();
    let mut report = None;
    let ending = loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => match line.trim_end().strip_prefix(REPORT_MARK) {
                Some(json) => {
                    report = Some(serde_json::from_str::<Report>(json).context("reading the report")?);
                }
                None => println!("{:6.1} s | {}", started.elapsed().as_secs_f64(), line.trim_end()),
            },
            Err(mpsc::RecvTimeoutError::Disconnected) => break "the host ended without a report",
            Err(mpsc::RecvTimeoutError::Timeout) => break "the bound was reached",
        }
    };
    let _ = qemu.kill();
    let _ = qemu.wait();
    match report {
        Some(report) => Ok(Report { file_systems: disks::check(&scenario.guest, &disks), ..report }),
        None => bail!("{ending}; its console is in {}", console.display()),
    }
}
