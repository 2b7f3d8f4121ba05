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

/// What the environment says when the first process began, in nanoseconds of its kernel's clock.
const STARTED: &str = "CPR_LAB_STARTED";
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
    let said = match std::env::var(STARTED) {
        Ok(said) => said,
        // A service of the host's root has an environment of its own.
        Err(_) => {
            fs::read_to_string(Path::new(LAB).join(STARTED)).with_context(|| format!("reading {STARTED}"))?
        }
    };
    Ok(Duration::from_nanos(said.parse().with_context(|| format!("{STARTED} is {said:?}"))?))
}

/// Writes that down for [`started`] in the directory that is to be the lab's of the host's root.
pub fn keep_started(directory: &Path, started: Duration) -> Result<()> {
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
    let port =
        OpenOptions::new().write(true).open(REPORT_PORT).with_context(|| format!("opening {REPORT_PORT}"))?;
    let status = Command::new("/proc/self/exe")
        .arg("inside")
        .env(STARTED, started.as_nanos().to_string())
        .stdout(port.try_clone()?)
        .stderr(port)
        .status()
        .context("starting the scenario")?;
    if !status.success() {
        bail!("the scenario ended with {status}");
    }
    Ok(())
}
