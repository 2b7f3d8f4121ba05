//! The first process of the lab's host.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use guest_init::early;
use nix::sys::reboot::{RebootMode, reboot};

use super::image::SCENARIO;
use super::kexec;
use super::operator::LAB;
use super::operator::enter::enter;
use super::scenario::Scenario;

/// The file that says when the first process began, in nanoseconds of its kernel's clock.
const STARTED: &str = "started";
/// The serial port that the lab outside listens to; the kernel has the other one.
pub const REPORT_PORT: &str = "/dev/ttyS1";
const SYSTEMS: [(&str, &str); 6] = [
    ("/proc", "proc"),
    ("/sys", "sysfs"),
    ("/dev", "devtmpfs"),
    ("/dev/shm", "tmpfs"),
    ("/run", "tmpfs"),
    ("/tmp", "tmpfs"),
];

/// Prepares the host, runs the scenario in a child, powers the host off.
pub fn run() -> Result<()> {
    if let Err(error) = kexec::up().and_then(scenario) {
        eprintln!("lab: {error:#}");
    }
    reboot(RebootMode::RB_POWER_OFF).context("powering off")?;
    bail!("the host did not power off");
}

/// When the host's first process began, by its kernel's clock.
pub fn started() -> Result<Duration> {
    let path = Path::new(LAB).join(STARTED);
    let said = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok(Duration::from_nanos(said.parse().with_context(|| format!("{} is {said:?}", path.display()))?))
}

/// Writes that down for [`started`] in what is the lab's directory of the host, or is to be.
pub fn keep_started(directory: &Path, started: Duration) -> Result<()> {
    fs::create_dir_all(directory)?;
    fs::write(directory.join(STARTED), started.as_nanos().to_string())
        .context("writing down when the host began")
}

fn scenario(started: Duration) -> Result<()> {
    early::mounts(&SYSTEMS)?;
    early::modules();
    let its = Scenario::read(Path::new(SCENARIO))?;
    if its.host.as_ref().is_some_and(|host| host.root.is_some()) {
        match enter(&its, started)? {}
    }
    keep_started(Path::new(LAB), started)?;
    let port =
        OpenOptions::new().write(true).open(REPORT_PORT).with_context(|| format!("opening {REPORT_PORT}"))?;
    let status = Command::new("/proc/self/exe")
        .arg("inside")
        .stdout(port.try_clone()?)
        .stderr(port)
        .status()
        .context("starting the scenario")?;
    if !status.success() {
        bail!("the scenario ended with {status}");
    }
    Ok(())
}
