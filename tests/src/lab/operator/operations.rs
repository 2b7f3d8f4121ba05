//! What the operator does, and what must become of the guests.

use std::convert::Infallible;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::guest::Followed;
use super::{KEPT, LAB, Operation, OperationReport, POWER_LOSS, Progress, UnderWay};
use crate::lab::commands::until_within;
use crate::lab::kexec;
use crate::lab::paths::{self, GUESTS};
use crate::lab::scenario::Scenario;

/// For a host to take its guests down.
const DOWN_WITHIN: Duration = Duration::from_mins(5);
/// The host's initial RAM disk, where it is its own.
const OWN_INITRD: &str = "/var/lib/lab/initrd";
/// Where `host-upgrade` says how it went.
const REPORT: &str = "/var/lib/cpr/upgrade.report";

/// Runs a program to its end; its exit code and all that it said.
fn run_program(program: &str, arguments: &[&str]) -> (Option<i32>, String) {
    match Command::new(program).args(arguments).stdin(Stdio::null()).output() {
        Ok(Output { status, stdout, stderr }) => {
            let said = [stdout, stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
            (status.code(), said)
        }
        Err(error) => (None, format!("{program}: {error}")),
    }
}

/// Runs a program that must end well.
fn must(program: &str, arguments: &[&str]) -> Result<String> {
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

/// Prints what units, kernel and guests have said, for whoever looks for what went wrong.
pub fn show_logs() {
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

fn drift(scenario: &Scenario) -> Duration {
    Duration::from_millis(scenario.margins.drift_ms)
}

fn all_go_on(guests: &mut [Followed], scenario: &Scenario, report: &mut OperationReport) -> Result<()> {
    for guest in guests {
        guest.wait_until_active()?;
        report.wrong.extend(guest.goes_on(drift(scenario))?);
    }
    Ok(())
}

/// An operation under which the host's kernel goes on.
pub fn run(
    operation: Operation,
    guests: &mut [Followed],
    scenario: &Scenario,
    report: &mut OperationReport,
) -> Result<()> {
    let [image, initrd] = next(scenario, 0)?;
    let upgrade = [image.as_str(), initrd.as_str()];
    match operation {
        Operation::Reload => {
            for guest in &*guests {
                let pid = || systemctl_show(&guest.unit(), "MainPID");
                let before = pid()?;
                must("systemctl", &["reload", &guest.unit()])?;
                let after = pid()?;
                if before != after {
                    report.wrong.push(format!("{}: process {before} became {after}", guest.unit()));
                }
            }
        }
        Operation::Crash => {
            let guest = guests.last_mut().context("there is no guest")?;
            let pid = systemctl_show(&guest.unit(), "MainPID")?;
            let began = Instant::now();
            guest.leave();
            kill(Pid::from_raw(pid.parse()?), Signal::SIGKILL).context("killing a guest's process")?;
            let gone = || Ok::<_, anyhow::Error>(systemctl_show(&guest.unit(), "MainPID")? != pid);
            wait_for("systemd to see the crash", gone)?;
            guest.follow()?;
            report.wrong.extend(guest.began_anew(began)?);
        }
        Operation::Stop => {
            let guest = guests.last_mut().context("there is no guest")?;
            guest.leave();
            must("systemctl", &["stop", &guest.unit()])?;
            report.wrong.extend(ended_well(guest)?);
            let began = Instant::now();
            must("systemctl", &["start", &guest.unit()])?;
            guest.follow()?;
            report.wrong.extend(guest.began_anew(began)?);
        }
        Operation::Refusals => refusals(guests, &upgrade, scenario.guest.live_update, report)?,
        Operation::DryRun => dry_run(&upgrade, report)?,
        Operation::KexecRefused => {
            if scenario.guest.live_update {
                too_large(&image, report)?;
            }
            must("systemctl", &["mask", "--runtime", "kexec.target"])?;
            let (code, said) = run_program("host-upgrade", &upgrade);
            if code != Some(1) || !said.contains("guest 'vm1' runs here") {
                report.wrong.push(format!("a kexec that systemd refuses ended with {code:?}: {said}"));
            }
            let ours = said.lines().filter(|line| line.starts_with("host-upgrade: "));
            report.said.extend(ours.map(str::to_owned));
            must("systemctl", &["unmask", "--runtime", "kexec.target"])?;
        }
        Operation::Initrd => make_initrd(report)?,
        Operation::Upgrade
        | Operation::UpgradeLate
        | Operation::Kexec
        | Operation::KexecEarly
        | Operation::Reboot
        | Operation::PowerLoss => bail!("{operation} ends the kernel"),
    }
    all_go_on(guests, scenario, report)
}

/// Each is refused with exit code 3 and a word of why.
fn refusals(
    guests: &[Followed],
    upgrade: &[&str],
    live_update: bool,
    report: &mut OperationReport,
) -> Result<()> {
    let mut refused = |arguments: &[&str], words: &str| {
        let (code, said) = run_program("host-upgrade", arguments);
        if code != Some(3) || !said.contains(words) {
            let arguments = arguments.join(" ");
            report
                .wrong
                .push(format!("host-upgrade {arguments} ended with {code:?}, without '{words}': {said}"));
        }
        report.said.extend(said.lines().last().map(str::to_owned));
        said
    };
    refused(&["/etc/fstab"], "is no bzImage");
    refused(&["/nowhere/vmlinuz"], "is not there");
    // A kernel whose configuration lies beside it.
    let strange = Path::new("/run/lab-strange");
    fs::create_dir_all(strange)?;
    let image = strange.join("vmlinuz").display().to_string();
    fs::copy(upgrade[0], &image)?;
    // Nothing lies beside it yet; that and its version are said before the guests are asked.
    let unit = guests.last().context("there is no guest")?.unit();
    must("systemctl", &["disable", &unit])?;
    let said = refused(&[&image, upgrade[1]], "is not enabled");
    must("systemctl", &["enable", &unit])?;
    let version = said.split("whether ").nth(1).and_then(|rest| rest.split(' ').next());
    let version = version.with_context(|| format!("the kernel's version is not said: {said}"))?;
    let config = strange.join(format!("config-{version}"));
    fs::write(&config, "# CONFIG_KVM is not set\n")?;
    refused(&[&image, upgrade[1]], "has no KVM");
    if live_update {
        fs::write(&config, "CONFIG_KVM=y\n")?;
        refused(&[&image, upgrade[1]], "has no CONFIG_LIVEUPDATE");
    }
    refused(&[upgrade, &["--command-line", "console=ttyS0"]].concat(), "lacks");
    Ok(())
}

/// A RAM disk for which what the kernel has set aside to boot the next one in is too small.
fn too_large(image: &str, report: &mut OperationReport) -> Result<()> {
    const MORE_THAN_SCRATCH: u64 = 700 << 20;
    let initrd = Path::new(KEPT).join("too-large");
    File::create(&initrd)?.set_len(MORE_THAN_SCRATCH)?;
    let (code, said) = run_program("host-upgrade", &[image, &initrd.display().to_string()]);
    if code != Some(3) || !said.contains("kho_scratch=") {
        report.wrong.push(format!("a RAM disk that is too large: {code:?}, {said}"));
    }
    report.said.extend(said.lines().filter(|line| line.starts_with("host-upgrade: ")).map(str::to_owned));
    Ok(fs::remove_file(&initrd)?)
}

/// A dry run, which is refused where a guest is nobody's, unless that is left behind.
fn dry_run(upgrade: &[&str], report: &mut OperationReport) -> Result<()> {
    let mut stray = stray()?;
    let (code, said) = run_program("host-upgrade", &[upgrade, &["--dry-run"]].concat());
    if code != Some(3) || !said.contains("is not that of cpr@stray.service") {
        report.wrong.push(format!("a guest without a unit: {code:?}, {said}"));
    }
    let (code, said) = run_program("host-upgrade", &[upgrade, &["--dry-run", "--leave", "stray"]].concat());
    let loaded = fs::read_to_string("/sys/kernel/kexec_loaded")?;
    if code != Some(0) || loaded.trim() != "0" {
        report.wrong.push(format!("the dry run ended with {code:?}, loaded {}: {said}", loaded.trim()));
    }
    report.said.extend(said.lines().map(str::to_owned));
    must("cpr-save", &["quit", "stray"])?;
    stray.wait()?;
    Ok(())
}

/// A guest that is no unit's, with RAM that outlives a kexec.
fn stray() -> Result<Child> {
    let mut command = Command::new("cpr-load");
    let memory = format!("size=128M,backing=file,path={KEPT}/stray");
    command.args(["boot", "--name=stray", "--paused", "--memory", &memory]);
    command.args(["--log=error", "--kernel", &format!("{LAB}/guest/kernel")]).stdin(Stdio::null());
    let child = command.spawn().context("starting cpr-load")?;
    wait_for("the stray guest", || Ok(run_program("cpr-save", &["status", "stray"]).0 == Some(0)))?;
    Ok(child)
}

fn wait_for(what: &str, mut check: impl FnMut() -> Result<bool>) -> Result<()> {
    until_within(DOWN_WITHIN, what, || Ok(check()?.then_some(())))
}

/// Whether a unit that was stopped says that its guest was, by itself.
fn ended_well(guest: &Followed) -> Result<Option<String>> {
    let (result, code) =
        (systemctl_show(&guest.unit(), "Result")?, systemctl_show(&guest.unit(), "ExecMainStatus")?);
    let well = (result.as_str(), code.as_str()) == ("success", "0");
    Ok((!well).then(|| format!("{} ended with {result}, {code}", guest.unit())))
}

/// The kernel that comes after so many others, and its RAM disk.
fn next(scenario: &Scenario, index: usize) -> Result<[String; 2]> {
    let host = scenario.host.as_ref().context("there is no host")?;
    let kernel = host.next.get(index).context("the host has no other kernel")?;
    let [image, initrd] = kexec::images(*kernel).map(|path| Path::new(KEPT).join(path).display().to_string());
    Ok([image, if host.own_initrd { OWN_INITRD.to_owned() } else { initrd }])
}

/// Has initramfs-tools or dracut make the host's initial RAM disk, with what `scripts/install` has installed for that.
fn make_initrd(report: &mut OperationReport) -> Result<()> {
    let version = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    let began = Instant::now();
    let said = if Path::new("/usr/sbin/mkinitramfs").exists() {
        must("/usr/sbin/mkinitramfs", &["-o", OWN_INITRD, &version])?
    } else {
        // Without the modules that look for hardware: an emulated host takes many minutes for all.
        let modules = "base systemd systemd-initrd dracut-systemd fs-lib rootfs-block udev-rules cpr";
        let terse = ["--force", "--no-kernel", "--no-compress", "--no-early-microcode", "--modules", modules];
        must("dracut", &[&terse[..], &[OWN_INITRD, &version]].concat())?
    };
    report.said.extend(said.lines().map(str::to_owned));
    let mib = fs::metadata(OWN_INITRD)?.len() >> 20;
    report.said.push(format!("made {OWN_INITRD}, {mib} MiB, in {} s", began.elapsed().as_secs()));
    Ok(())
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

fn boot_id() -> Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// An operation that the host's kernel does not outlive: begins it, and writes down what was seen until then.
pub fn end_the_kernel(
    operation: Operation,
    go_on: bool,
    mut guests: Vec<Followed>,
    scenario: &Scenario,
    progress: &mut Progress,
    mut report: OperationReport,
) -> Result<Infallible> {
    let made = scenario.operations.iter().take(progress.begun.saturating_sub(1));
    let before = made.filter(|operation| operation.goes_into_a_kernel()).count();
    all_go_on(&mut guests, scenario, &mut report)?;
    let under_way =
        |report| Some(UnderWay { operation, boot_id: boot_id().unwrap_or_default(), go_on, report });
    let mut begun = match operation {
        Operation::Upgrade | Operation::UpgradeLate => {
            let [image, initrd] = next(scenario, before)?;
            // This process heeds no SIGTERM, and what it starts would inherit that.
            let mut upgrade = vec!["--default-signal=TERM", "host-upgrade", &image, &initrd];
            if operation == Operation::UpgradeLate {
                upgrade.extend(["--append", "cpr.early=0"]);
            }
            Command::new("env").args(upgrade).stdin(Stdio::null()).spawn()
        }
        Operation::Kexec | Operation::KexecEarly => {
            if operation == Operation::KexecEarly {
                guests.iter().try_for_each(resume_early)?;
            }
            let [image, initrd] = next(scenario, before)?;
            let (initrd, cmdline) = (format!("--initrd={initrd}"), fs::read_to_string("/proc/cmdline")?);
            let cmdline = format!("--command-line={}", cmdline.trim());
            must("kexec", &["-s", "-l", &image, &initrd, &cmdline])?;
            Command::new("systemctl").arg("kexec").spawn()
        }
        Operation::PowerLoss => {
            progress.under_way = under_way(report);
            progress.write()?;
            println!("{POWER_LOSS}");
            loop {
                thread::park();
            }
        }
        _ => Command::new("systemctl").arg("reboot").spawn(),
    }
    .with_context(|| format!("beginning with {operation}"))?;
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
    progress.under_way = under_way(report);
    if go_on {
        progress.guests = guests.into_iter().map(Followed::end).collect::<Result<_>>()?;
    }
    progress.write()?;
    // The host is stopped once its operator is.
    std::process::exit(0)
}

/// The rest of an operation that the kernel before this one did not outlive.
pub fn finish(
    operation: Operation,
    before: &str,
    go_on: bool,
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
    if go_on {
        all_go_on(guests, scenario, report)?;
    } else {
        let booted = Instant::now().checked_sub(kexec::up()?).context("the host's clocks do not agree")?;
        for guest in guests.iter_mut() {
            report.wrong.extend(guest.began_anew(booted)?);
        }
    }
    if matches!(operation, Operation::Upgrade | Operation::UpgradeLate) {
        let path = PathBuf::from(REPORT);
        let whole = || Ok(path.exists() && !Path::new("/var/lib/cpr/upgrade").exists());
        wait_for("the report", whole)?;
        let said = fs::read_to_string(&path)?;
        report.said.extend(said.lines().map(str::to_owned));
        let told =
            said.lines().filter(|line| line.contains(" downtime ") && line.contains(" by the host's TSC"));
        if told.count() != guests.len() {
            report.wrong.push(format!("the report does not say of each guest how long it stood:\n{said}"));
        }
        let early =
            scenario.host.as_ref().is_some_and(|host| host.own_initrd) && operation == Operation::Upgrade;
        let taken_over = said.lines().filter(|line| line.contains("taken over after")).count();
        if taken_over != if early { guests.len() } else { 0 } {
            report.wrong.push(format!("{taken_over} guests were resumed early"));
        }
    }
    Ok(())
}
