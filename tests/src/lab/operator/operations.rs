//! What the operator does while the host's kernel goes on, and what must become of the guests.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::guest::Followed;
use super::programs::{OWN_INITRD, all_go_on, ended_well, must, next, run_program, systemctl_show, wait_for};
use super::{KEPT, LAB, Operation, OperationReport};
use crate::lab::scenario::Scenario;

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
            report.wrong.extend(ended_by(Signal::SIGKILL, guest)?);
        }
        Operation::Hang => {
            let guest = guests.last_mut().context("there is no guest")?;
            // What it may be silent for is three minutes otherwise.
            let shorter = format!("/run/systemd/system/{}.d", guest.unit());
            fs::create_dir_all(&shorter)?;
            fs::write(Path::new(&shorter).join("10-lab.conf"), "[Service]\nWatchdogSec=30s\n")?;
            must("systemctl", &["daemon-reload"])?;
            guest.leave();
            must("systemctl", &["restart", &guest.unit()])?;
            guest.follow()?;
            report.wrong.extend(ended_by(Signal::SIGSTOP, guest)?);
            fs::remove_dir_all(&shorter)?;
            must("systemctl", &["daemon-reload"])?;
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
        | Operation::KexecFails
        | Operation::Reboot
        | Operation::PowerLoss
        | Operation::SavedPowerLoss => bail!("{operation} ends the kernel"),
    }
    all_go_on(guests, scenario, report)
}

/// Sends a guest's process a signal, upon which systemd must see another in its place, with the guest booted anew.
fn ended_by(signal: Signal, guest: &mut Followed) -> Result<Vec<String>> {
    let pid = systemctl_show(&guest.unit(), "MainPID")?;
    let began = Instant::now();
    guest.leave();
    kill(Pid::from_raw(pid.parse()?), signal).context("sending a guest's process a signal")?;
    let other = || {
        let now = systemctl_show(&guest.unit(), "MainPID")?;
        Ok(now != pid && now != "0")
    };
    wait_for("systemd to start another process", other)?;
    guest.follow()?;
    guest.began_anew(began)
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
