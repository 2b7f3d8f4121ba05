//! The two commands, as the lab runs them.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::resource::{Resource, setrlimit};
use serde_json::Value;
use vmm_core::cpr::report::PhaseTime;

use super::image::COMMANDS;
use super::paths;
use super::steps::exit;

/// How long anything may take that the lab waits for.
pub const WITHIN: Duration = Duration::from_mins(2);

/// Starts `cpr-load`, the process with this number of those that have or had the guest.
pub fn load(name: &str, arguments: &[String], index: u32, confined: bool) -> Result<Child> {
    let log = File::create(paths::log(name, index))?;
    let mut command = Command::new(format!("{COMMANDS}/cpr-load"));
    command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    if confined {
        // SAFETY: between fork and exec the child makes two system calls and allocates nothing.
        unsafe { command.pre_exec(confine) };
    }
    command.spawn().context("starting cpr-load")
}

/// Runs `cpr-load`, which must refuse what it is asked and say so with these words.
pub fn refused(name: &str, arguments: &[String], words: &str) -> Result<()> {
    let mut process = load(name, arguments, 0, false)?;
    let ended = exit(&mut process, WITHIN)?;
    if ended.is_none() {
        process.kill()?;
        process.wait()?;
    }
    let said = std::fs::read_to_string(paths::log(name, 0))?;
    let last = said.lines().last().unwrap_or_default();
    println!("  refused: {last}");
    ensure!(
        ended.is_some_and(|status| status.code() == Some(1)) && said.contains(words),
        "{} was not refused with a word of {words:?} ({ended:?}): {said}",
        arguments.join(" ")
    );
    Ok(())
}

/// Takes the capability to lock memory from this process's programs, and most of the memory that others may lock.
fn confine() -> io::Result<()> {
    const CAP_IPC_LOCK: libc::c_ulong = 14;
    const LITTLE: u64 = 8 << 20;
    setrlimit(Resource::RLIMIT_MEMLOCK, LITTLE, LITTLE)?;
    // SAFETY: it takes numbers only.
    nix::errno::Errno::result(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0) })?;
    Ok(())
}

/// Runs `cpr-save --json` to its end, and returns the last thing that it said.
pub fn save(arguments: &[&str]) -> Result<Value> {
    let command = arguments.join(" ");
    let output = Command::new(format!("{COMMANDS}/cpr-save"))
        .args(arguments)
        .arg("--json")
        .stdin(Stdio::null())
        .output()
        .context("starting cpr-save")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let last = said.lines().last().unwrap_or_default();
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("cpr-save {command} ended with {}: {last} {}", output.status, complaint.trim());
    }
    serde_json::from_str(last).with_context(|| format!("cpr-save {command} said {last:?}"))
}

/// A socket as the commands take it.
pub fn unix(socket: &Path) -> String {
    format!("unix:{}", socket.display())
}

/// Whether `cpr-save`, that failed and said this, says that the guest is where it was.
pub fn is_in_source(said: &str) -> bool {
    ["exit status: 1", "exit status: 3"].iter().any(|code| said.contains(code))
}

/// What the guest's owner says of itself.
pub fn status(name: &str) -> Result<Value> {
    save(&["status", name])
}

/// The downtime that a report of `cpr-save` has, in milliseconds.
pub fn downtime(said: &Value) -> Option<f64> {
    said["report"]["downtime-us"].as_f64().map(|microseconds| microseconds / 1e3)
}

/// The steps that a report of `cpr-save` has; that of a reboot, whose second half is another process's, has none.
pub fn phases(said: &Value) -> Result<Vec<PhaseTime>> {
    let phases = said["report"].get("phases").cloned();
    phases
        .map_or(Ok(Vec::new()), |phases| serde_json::from_value(phases).context("reading the steps reported"))
}

/// Checks until there is a value, for as long as anything may take.
pub fn until<T>(what: &str, check: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    until_within(WITHIN, what, check)
}

/// Checks until there is a value, for so long.
pub fn until_within<T>(
    within: Duration,
    what: &str,
    mut check: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(value) = check()? {
            return Ok(value);
        }
        if Instant::now() > deadline {
            bail!("waited {within:?} for {what}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
