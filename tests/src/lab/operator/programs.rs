//! What an operator runs, and what it waits for.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::guest::Followed;
use super::{KEPT, OperationReport};
use crate::lab::autopsy::{self, Holder};
use crate::lab::commands::until_within;
use crate::lab::kexec;
use crate::lab::paths::{self, GUESTS};
use crate::lab::scenario::{Guest, Scenario};

/// For a host to take its guests down.
const DOWN_WITHIN: Duration = Duration::from_mins(5);
/// The host's initial RAM disk, where it is its own.
pub const OWN_INITRD: &str = "/var/lib/lab/initrd";

/// Runs a program to its end; its exit code and all that it said.
pub fn run_program(program: &str, arguments: &[&str]) -> (Option<i32>, String) {
    match Command::new(program).args(arguments).stdin(Stdio::null()).output() {
        Ok(Output { status, stdout, stderr }) => {
            let said = [stdout, stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
            (status.code(), said)
        }
        Err(error) => (None, format!("{program}: {error}")),
    }
}

/// Runs a program that must end well.
pub fn must(program: &str, arguments: &[&str]) -> Result<String> {
    let (code, said) = run_program(program, arguments);
    ensure!(code == Some(0), "{program} {} ended with {code:?}: {said}", arguments.join(" "));
    Ok(said)
}

/// `systemctl`.
pub fn systemctl(arguments: &[&str]) -> (Option<i32>, String) {
    run_program("systemctl", arguments)
}

/// A property of a unit's.
pub fn systemctl_show(unit: &str, property: &str) -> Result<String> {
    Ok(must("systemctl", &["show", "--value", "-p", property, unit])?.trim().to_owned())
}

/// How long each thread of a guest's process ran in a while: one that does nothing waits for something.
fn show_threads(name: &str) {
    const WHILE: Duration = Duration::from_secs(3);
    let Ok(pid) = systemctl_show(&format!("cpr@{name}.service"), "MainPID") else { return };
    let ticks = || -> Vec<(String, u64)> {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
        let ran = stats.filter_map(|stat| {
            let (comm, rest) = stat.rsplit_once(')')?;
            let spent =
                rest.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok());
            Some((comm.to_owned(), spent.sum()))
        });
        ran.collect()
    };
    let before = ticks();
    std::thread::sleep(WHILE);
    println!("--- {name}: of {WHILE:?} its threads ran, in ticks");
    for ((comm, before), (_, after)) in before.iter().zip(ticks()) {
        println!("{comm}) {}", after.saturating_sub(*before));
    }
}

/// Where a guest's vCPUs stand, if its RAM is where that can be seen: it is saved for that.
fn show_vcpus(name: &str, guest: &Guest) {
    let saved = || {
        let pid = systemctl_show(&format!("cpr@{name}.service"), "MainPID")?.parse()?;
        let path = paths::ram(name, guest);
        let ram = Holder::find(pid, path.as_deref())?;
        let state = Path::new(KEPT).join(format!("{name}.autopsy"));
        let to = format!("file:{}", state.display());
        let copied = path.is_none().then_some("--copy-ram");
        let words = ["reboot", name, "--to", &to].into_iter().chain(copied);
        must("cpr-save", &words.collect::<Vec<_>>())?;
        autopsy::print(&state, &ram)
    };
    if let Err(error) = saved() {
        println!("where the vCPUs of {name} stand cannot be told: {error:#}");
    }
}

/// Prints what units, kernel and guests have said, for whoever looks for what went wrong.
pub fn show_logs(scenario: &Scenario) {
    for (name, guest) in GUESTS.iter().zip(std::iter::once(&scenario.guest).chain(&scenario.second)) {
        show_threads(name);
        show_vcpus(name, guest);
    }
    const LAST: usize = 4000;
    for path in GUESTS.iter().flat_map(|name| [paths::serial_log(name), paths::console_log(name)]) {
        let said = fs::read(&path).unwrap_or_default();
        println!("--- the end of {}", path.display());
        println!("{}", String::from_utf8_lossy(&said[said.len().saturating_sub(LAST)..]));
    }
    for arguments in [
        &["--no-pager", "--lines=60", "-u", "cpr@*", "-u", "cpr-report", "-o", "short-monotonic"][..],
        &["--no-pager", "--lines=30", "-o", "short-monotonic"],
    ] {
        println!("--- journalctl {}", arguments.join(" "));
        println!("{}", run_program("journalctl", arguments).1);
    }
    println!("---");
}

pub fn wait_for(what: &str, mut check: impl FnMut() -> Result<bool>) -> Result<()> {
    until_within(DOWN_WITHIN, what, || Ok(check()?.then_some(())))
}

/// Whether a unit that was stopped says that its guest was, by itself.
pub fn ended_well(guest: &Followed) -> Result<Option<String>> {
    let (result, code) =
        (systemctl_show(&guest.unit(), "Result")?, systemctl_show(&guest.unit(), "ExecMainStatus")?);
    let well = (result.as_str(), code.as_str()) == ("success", "0");
    Ok((!well).then(|| format!("{} ended with {result}, {code}", guest.unit())))
}

/// The kernel that comes after so many others, and its RAM disk.
pub fn next(scenario: &Scenario, index: usize) -> Result<[String; 2]> {
    let host = scenario.host.as_ref().context("there is no host")?;
    let kernel = host.next.get(index).context("the host has no other kernel")?;
    let [image, initrd] = kexec::images(*kernel).map(|path| Path::new(KEPT).join(path).display().to_string());
    Ok([image, if host.own_initrd { OWN_INITRD.to_owned() } else { initrd }])
}

fn drift(scenario: &Scenario) -> Duration {
    Duration::from_millis(scenario.margins.drift_ms)
}

pub fn all_go_on(guests: &mut [Followed], scenario: &Scenario, report: &mut OperationReport) -> Result<()> {
    for guest in guests {
        guest.wait_until_active()?;
        report.wrong.extend(guest.goes_on(drift(scenario))?);
    }
    Ok(())
}
