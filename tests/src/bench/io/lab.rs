//! In the lab's host: a machine in QEMU under TCG, on which both contenders find `/dev/kvm`.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::place::{self, Other, Place};
use super::table::Report;
use super::{Options, program, turns};
use crate::harness::host::binary;
use crate::lab::image::{self, COMMANDS, GUEST_INITRD, GUEST_KERNEL};
use crate::lab::inside::REPORT_MARK;
use crate::lab::scenario::Kernel;
use crate::lab::watch::{self, Watched};
use crate::lab::{disks, qemu};

/// Where the RAM disk has what is to be done.
const PLACE: &str = "/place.json";
/// Where it has another cpr-load.
const OTHER: &str = "/bin/other";
/// CPUs of the host, which take turns on one processor.
const CPUS: u32 = 1;
/// Where the host's console is kept.
const KEPT: &str = "target/lab/bench-io";
/// What it takes to boot all three machines.
const BOOT: Duration = Duration::from_mins(5);

/// Writes the guest's initial RAM disk.
pub fn guest_initrd(path: &Path) -> Result<()> {
    let mut archive = image::create(path)?;
    archive.file("init", &fs::read(binary("guest-init")?)?)?;
    archive.finish().with_context(|| format!("writing {}", path.display()))
}

/// Writes a new disk.
pub fn disk(path: &Path) -> Result<()> {
    let mut file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    place::content().try_for_each(|piece| file.write_all(&piece)).context("filling a disk")
}

/// Where images lie that no disk of the machine's is to slow down.
pub fn fast_directory() -> Result<tempfile::TempDir> {
    let shm = Path::new("/dev/shm");
    let directory = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
    directory.context("making a directory")
}

/// Measures there.
pub fn run(options: &Options) -> Result<Report> {
    let directory = fast_directory()?;
    let path = |name: &str| directory.path().join(name);
    let kernel = image::kernel(Kernel::Lab)?;
    guest_initrd(&path("guest.cpio"))?;
    let images: Vec<_> = (0..Place::disks_needed(options)).map(|number| path(&number.to_string())).collect();
    images.iter().try_for_each(|image| disk(image))?;
    let place = Place {
        cpr_load: format!("{COMMANDS}/cpr-load").into(),
        other: match &options.against {
            Some(_) => Other::Ours(OTHER.into()),
            None => Other::Qemu { root: Some(program::ROOT.into()), iothread: options.iothread },
        },
        kernel: GUEST_KERNEL.into(),
        initrd: GUEST_INITRD.into(),
        directory: "/run/io".into(),
        disks: (0..images.len()).map(|number| Path::new("/dev").join(disks::nth(number))).collect(),
        vhost: true,
        rounds: options.rounds,
        ms: options.time,
        only: options.only,
    };
    let tests = super::plan::tests(&place).len() as u32;
    host_initrd(&path("host.cpio"), &place, options, &kernel, &path("guest.cpio"))?;
    fs::create_dir_all(KEPT).with_context(|| format!("creating {KEPT}"))?;
    let console = Path::new(KEPT).join("console.log");
    let machine = qemu::Machine {
        cpus: CPUS,
        memory: "3G",
        kernel: &kernel,
        initrd: &path("host.cpio"),
        cmdline: watch::CMDLINE,
        disks: &images,
        nvme: &[],
        iommu: false,
        tap: None,
        serial: &[format!("file:{}", console.display()), "stdio".into()],
        console: None,
        others: &[],
    };
    let time = Duration::from_millis(place.ms + 4000) * 2 * tests * (place.rounds + 1);
    report(&machine, Instant::now() + BOOT + time)
        .with_context(|| format!("the host's console is in {}", console.display()))
}

fn host_initrd(path: &Path, place: &Place, options: &Options, kernel: &Path, guest: &PathBuf) -> Result<()> {
    let mut archive = image::create(path)?;
    archive.file("init", &fs::read("/proc/self/exe")?)?;
    archive.directory("guest")?;
    archive.file(GUEST_KERNEL, &fs::read(kernel)?)?;
    archive.file(GUEST_INITRD, &fs::read(guest)?)?;
    archive.file(PLACE, &serde_json::to_vec(place)?)?;
    archive.directory("bin")?;
    archive.file(&format!("{COMMANDS}/cpr-load"), &fs::read(binary("cpr-load")?)?)?;
    match &options.against {
        Some(other) => {
            let content = fs::read(other).with_context(|| format!("reading {}", other.display()))?;
            archive.file(OTHER, &content)?;
        }
        None => program::add(&mut archive)?,
    }
    archive.finish().with_context(|| format!("writing {}", path.display()))
}

/// Runs the host until it has reported.
fn report(machine: &qemu::Machine, deadline: Instant) -> Result<Report> {
    match Watched::start(machine)?.report(deadline, |line| eprintln!("{line}")) {
        Ok(json) => serde_json::from_str(&json).context("reading the report"),
        Err(RecvTimeoutError::Disconnected) => bail!("the host ended without a report"),
        Err(RecvTimeoutError::Timeout) => bail!("the host took too long"),
    }
}

/// Measures, in the host, and prints the report.
pub fn inside() -> Result<()> {
    let place: Place = serde_json::from_slice(&fs::read(PLACE)?)?;
    println!("host is up: {}", fs::read_to_string("/proc/version")?.trim());
    match turns::run(&place, |what| println!("{what}")) {
        Ok(report) => println!("{REPORT_MARK}{}", serde_json::to_string(&report)?),
        Err(error) => bail!("{error:#}"),
    }
    Ok(())
}
