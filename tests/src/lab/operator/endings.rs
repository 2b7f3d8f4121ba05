//! What the operator does that the host's kernel does not outlive, and what must become of the guests.

use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use super::guest::Followed;
use super::programs::{all_go_on, ended_well, must, next, systemctl_show, wait_for};
use super::{Operation, OperationReport, POWER_LOSS, Progress, UnderWay};
use crate::lab::kexec;
use crate::lab::scenario::Scenario;

/// Where `host-upgrade` says how it went.
const REPORT: &str = "/var/lib/cpr/upgrade.report";
/// What systemd runs when nothing else runs any more (`systemd-shutdown(8)`), and what of it unloads the kernel that it is to go into.
const AT_THE_END: &str = "/usr/lib/systemd/system-shutdown";
const UNLOAD: &str = "lab-unload";

fn boot_id() -> Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Has a guest's unit end, with the guest saved, and the guest go on in a process as an initial RAM disk starts it.
fn resume_early(guest: &Followed) -> Result<()> {
    must("cpr-save", &["reboot", guest.name, "--to", "luo:"])?;
    wait_for("the unit to end", || Ok(systemctl_show(&guest.unit(), "ActiveState")? == "inactive"))?;
    // What it leaves behind would keep a pipe open.
    let mut early = Command::new("env");
    early.args(["--default-signal=TERM", "cpr-load", "early", guest.name]).stdin(Stdio::null());
    let status = early.stdout(Stdio::null()).stderr(Stdio::null()).status().context("starting cpr-load")?;
    ensure!(status.success(), "cpr-load early ended with {status}");
    let state = must("cpr-save", &["status", guest.name])?;
    ensure!(state.contains(": running, "), "resumed early, the guest is not running: {state}");
    Ok(())
}

/// Has the next kexec fail when nobody is left to take it back.
fn kexec_is_to_fail() -> Result<()> {
    let unload = Path::new(AT_THE_END).join(UNLOAD);
    fs::create_dir_all(AT_THE_END)
        .and_then(|()| fs::write(&unload, "#!/bin/sh\nexec kexec -u\n"))
        .and_then(|()| fs::set_permissions(&unload, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("making {}", unload.display()))
}

/// Begins it: none where the host's power is to be cut.
fn begin(operation: Operation, guests: &[Followed], [image, initrd]: [&str; 2]) -> Result<Option<Child>> {
    // This process heeds no SIGTERM, and what it starts would inherit that.
    let upgrade = ["--default-signal=TERM", "host-upgrade", image, initrd];
    let (program, arguments) = match operation {
        Operation::Upgrade => ("env", upgrade.to_vec()),
        Operation::UpgradeLate => ("env", [&upgrade[..], &["--append", "cpr.early=0"]].concat()),
        Operation::KexecFails => {
            kexec_is_to_fail()?;
            ("env", upgrade.to_vec())
        }
        Operation::Kexec | Operation::KexecEarly => {
            if operation == Operation::KexecEarly {
                guests.iter().try_for_each(resume_early)?;
            }
            let (initrd, cmdline) = (format!("--initrd={initrd}"), fs::read_to_string("/proc/cmdline")?);
            let cmdline = format!("--command-line={}", cmdline.trim());
            must("kexec", &["-s", "-l", image, &initrd, &cmdline])?;
            ("systemctl", vec!["kexec"])
        }
        Operation::PowerLoss => return Ok(None),
        // As host-upgrade does it.
        Operation::SavedPowerLoss => {
            ("cpr-save", vec!["reboot", "--all", "--to", "auto:/var/lib/cpr", "--kexec", "--copy-ram"])
        }
        _ => ("systemctl", vec!["reboot"]),
    };
    let begun = Command::new(program).args(arguments).stdin(Stdio::null()).spawn();
    begun.with_context(|| format!("beginning with {operation}")).map(Some)
}

/// An operation that the host's kernel does not outlive: begins it, and writes down what was seen until then.
pub fn end_the_kernel(
    operation: Operation,
    mut guests: Vec<Followed>,
    scenario: &Scenario,
    progress: &mut Progress,
    mut report: OperationReport,
) -> Result<Infallible> {
    let made = scenario.operations.iter().take(progress.begun.saturating_sub(1));
    let before = made.filter(|operation| operation.loads_a_kernel()).count();
    all_go_on(&mut guests, scenario, &mut report)?;
    let next = if operation.loads_a_kernel() { next(scenario, before)? } else { Default::default() };
    let begun = begin(operation, &guests, next.each_ref().map(String::as_str))?;
    if let Some(mut begun) = begun {
        wait_for("the guests to end", || {
            if let Some(status) = begun.try_wait()?.filter(|status| !status.success()) {
                bail!("{operation} ended with {status}");
            }
            Ok(guests.iter().all(|guest| !guest.is_connected()))
        })?;
        for guest in &guests {
            wait_for("the units to end", || {
                let state = systemctl_show(&guest.unit(), "ActiveState")?;
                Ok(state == "inactive" || state == "failed")
            })?;
            report.wrong.extend(ended_well(guest)?);
        }
        if operation == Operation::SavedPowerLoss {
            begun.wait().context("waiting for the guests to be saved")?;
        }
    }
    progress.under_way = Some(UnderWay { operation, boot_id: boot_id()?, report });
    if operation.guests_go_on() {
        progress.guests = guests.into_iter().map(Followed::end).collect::<Result<_>>()?;
    }
    progress.write()?;
    if operation.cuts_the_power() {
        println!("{POWER_LOSS}");
        loop {
            thread::park();
        }
    }
    // The host is stopped once its operator is.
    std::process::exit(0)
}

/// The rest of an operation that the kernel before this one did not outlive.
pub fn finish(
    operation: Operation,
    before: &str,
    guests: &mut [Followed],
    scenario: &Scenario,
    report: &mut OperationReport,
) -> Result<()> {
    if boot_id()? == before {
        report.wrong.push("the host's kernel is the one from before".into());
    }
    report
        .said
        .push(format!("the host's kernel is {}", fs::read_to_string("/proc/sys/kernel/osrelease")?.trim()));
    if operation.guests_go_on() {
        all_go_on(guests, scenario, report)?;
    } else {
        let booted = Instant::now().checked_sub(kexec::up()?).context("the host's clocks do not agree")?;
        for guest in guests.iter_mut() {
            report.wrong.extend(guest.began_anew(booted)?);
        }
    }
    match operation {
        Operation::Upgrade | Operation::UpgradeLate => {
            let own = scenario.host.as_ref().is_some_and(|host| host.own_initrd);
            let early = if own && operation == Operation::Upgrade { guests.len() } else { 0 };
            upgraded(&[(" by the host's TSC", guests.len()), ("taken over after", early)], report)
        }
        Operation::KexecFails => {
            fs::remove_file(Path::new(AT_THE_END).join(UNLOAD))?;
            upgraded(
                &[(" by the host's wall clock", guests.len()), ("the kexec has failed at its end", 1)],
                report,
            )
        }
        _ => Ok(()),
    }
}

/// What an upgrade's report must say, so often.
fn upgraded(words: &[(&str, usize)], report: &mut OperationReport) -> Result<()> {
    let path = PathBuf::from(REPORT);
    wait_for("the report", || Ok(path.exists() && !Path::new("/var/lib/cpr/upgrade").exists()))?;
    let said = fs::read_to_string(&path)?;
    report.said.extend(said.lines().map(str::to_owned));
    for (words, expected) in words {
        let found = said.lines().filter(|line| line.contains(words)).count();
        if found != *expected {
            report.wrong.push(format!("the report says {found} times, not {expected}: {words}:\n{said}"));
        }
    }
    Ok(())
}
