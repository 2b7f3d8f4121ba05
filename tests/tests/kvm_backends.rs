//! What devices are on: images and taps go where the guest goes, and what is not as it was is refused by name.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use cpr_tests::guests::{Guest, Mode};
use cpr_tests::harness::host::Host;
use cpr_tests::harness::process::Process;
use cpr_tests::harness::runner::{Skipped, Tier};
use cpr_tests::harness::vm::{Spec, Vm};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CloneFlags, unshare};
use vmm_core::cpr::Mode as CprMode;
use vmm_core::devices::virtio::net::Tap;

cpr_tests::tests!(
    Tier::Kvm,
    an_image_is_free_for_a_third_at_no_time_of_a_transfer_or_an_exec,
    an_image_that_another_guest_has_is_refused_and_its_holder_named,
    an_image_that_was_deleted_blocks_a_reboot_until_it_is_back,
    an_image_that_grew_was_written_or_replaced_since_the_save_is_refused_until_it_is_back,
    a_tap_that_is_deleted_meanwhile_is_refused_and_the_guest_goes_on,
    a_tap_given_as_a_descriptor_goes_along_and_blocks_a_reboot,
);

const SIZE: u64 = 1 << 20;
const WITHIN: Duration = Duration::from_mins(1);

fn image(host: &Host) -> anyhow::Result<PathBuf> {
    let path = host.fresh("img");
    File::create(&path).and_then(|file| file.set_len(SIZE)).context("making an image")?;
    Ok(path)
}

fn boot(host: &Host, device: String) -> anyhow::Result<Vm<'_>> {
    Vm::boot(host, Spec { devices: vec![device], ..Spec::new(Guest::patterns(Mode::Long), 1) })
}

fn disk(path: &Path) -> String {
    format!("virtio-blk-pci,id=disk0,path={}", path.display())
}

/// Waits for a process to fail; gives what it printed.
fn fails(process: &mut Process) -> anyhow::Result<String> {
    let status = process.wait(WITHIN)?;
    ensure!(!status.success(), "{} did not fail", process.name());
    Ok(process.log())
}

fn an_image_is_free_for_a_third_at_no_time_of_a_transfer_or_an_exec() -> anyhow::Result<()> {
    let host = Host::new()?;
    let path = image(&host)?;
    let mut vm = boot(&host, disk(&path))?;
    let (stop, tried) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let third = std::thread::spawn({
        let (stop, tried) = (Arc::clone(&stop), Arc::clone(&tried));
        let file = OpenOptions::new().read(true).write(true).open(&path).context("opening the image")?;
        move || {
            while !stop.load(Ordering::SeqCst) {
                if lock(&file) {
                    return true;
                }
                tried.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_micros(50));
            }
            false
        }
    });
    for _ in 0..3 {
        vm.transfer().and_then(|_| vm.goes_on())?;
        vm.exec().and_then(|_| vm.goes_on())?;
    }
    stop.store(true, Ordering::SeqCst);
    let locked = third.join().map_err(|_| anyhow::anyhow!("the third panicked"))?;
    let tried = tried.load(Ordering::SeqCst);
    ensure!(!locked, "the image was free after {tried} tries");
    ensure!(tried > 1000, "only {tried} tries were made");
    vm.ask("quit")?;
    vm.process.wait(WITHIN)?;
    let file = OpenOptions::new().read(true).write(true).open(&path).context("opening the image")?;
    ensure!(lock(&file), "the image is not free after the guest's end");
    Ok(())
}

/// Tries to lock a file for writing, as another user of the image would.
fn lock(file: &File) -> bool {
    let (l_type, l_whence) = (libc::F_WRLCK as i16, libc::SEEK_SET as i16);
    let whole = libc::flock { l_type, l_whence, l_start: 0, l_len: 0, l_pid: 0 };
    fcntl(file, FcntlArg::F_OFD_SETLK(&whole)).is_ok()
}

fn an_image_that_another_guest_has_is_refused_and_its_holder_named() -> anyhow::Result<()> {
    let host = Host::new()?;
    let path = image(&host)?;
    let mut vm = boot(&host, disk(&path))?;
    for _ in 0..2 {
        let holder = format!("process {} (cpr-load)", vm.process.pid());
        let rom = host.fresh("rom");
        fs::write(&rom, Guest::patterns(Mode::Long).image())?;
        let firmware = format!("--firmware={}", rom.display());
        let mut other =
            host.load(["boot", "--name=other", &firmware, "--memory=size=32M", "--device", &disk(&path)])?;
        let said = fails(&mut other)?;
        ensure!(said.contains("disk0") && said.contains(&holder), "without {holder}: {said}");
        vm.goes_on()?;
        vm.transfer()?;
    }
    Ok(())
}

fn an_image_that_was_deleted_blocks_a_reboot_until_it_is_back() -> anyhow::Result<()> {
    let host = Host::new()?;
    let path = image(&host)?;
    let mut vm = boot(&host, disk(&path))?;
    let kept = host.fresh("kept");
    fs::rename(&path, &kept)?;
    let state = format!("file:{}", host.fresh("state").display());
    for (verb, flags) in [("check", ["--mode", "reboot"]), ("reboot", ["--to", &state])] {
        let outcome = vm.save(verb, &flags)?;
        outcome.clone().must_say(3, "disk0")?.must_say(3, "no longer where it was")?;
    }
    vm.goes_on()?;
    // The image itself goes along in the other modes.
    vm.transfer()?;
    fs::rename(&kept, &path)?;
    vm.reboot()?;
    vm.goes_on()
}

type Change<'a> = &'a dyn Fn() -> anyhow::Result<()>;

fn an_image_that_grew_was_written_or_replaced_since_the_save_is_refused_until_it_is_back()
-> anyhow::Result<()> {
    let host = Host::new()?;
    let path = image(&host)?;
    let mut vm = boot(&host, disk(&path))?;
    let state = format!("file:{}", host.fresh("state").display());
    vm.save("reboot", &["--to", &state])?.must_be(0)?;
    vm.process.wait(WITHIN)?;
    let kept = host.fresh("kept");
    let modified = fs::metadata(&path)?.modified()?;
    let back = || -> anyhow::Result<()> {
        let file = OpenOptions::new().write(true).open(&path)?;
        file.set_len(SIZE)?;
        Ok(file.set_modified(modified)?)
    };
    let grow = || Ok(OpenOptions::new().write(true).open(&path)?.set_len(2 * SIZE)?);
    let write =
        || Ok(OpenOptions::new().write(true).open(&path)?.set_modified(std::time::SystemTime::now())?);
    let replace = || {
        fs::rename(&path, &kept)?;
        fs::copy(&kept, &path)?;
        back()
    };
    let put_back = || Ok(fs::rename(&kept, &path)?);
    let changes: [(&str, Change<'_>, Change<'_>); 3] =
        [("size", &grow, &back), ("modif", &write, &back), ("inode", &replace, &put_back)];
    for (named, change, undo) in changes {
        change()?;
        let said = fails(&mut host.load(["resume", "--from", &state])?)?;
        let image = path.display().to_string();
        ensure!(said.contains(named) && said.contains(&image), "without '{named}' of {image}: {said}");
        undo()?;
    }
    vm.process = host.load(["resume", "--from", &state])?;
    vm.becomes("running")?;
    vm.goes_on()
}

/// Enters a network namespace of its own, with a tap in it.
fn network() -> anyhow::Result<()> {
    let made = unshare(CloneFlags::CLONE_NEWNET).map_err(anyhow::Error::from);
    let tap = made.and_then(|()| ip("tuntap add dev t0 mode tap"));
    tap.map_err(|error| Skipped(format!("no network namespace with taps: {error:#}")).into())
}

fn ip(arguments: &str) -> anyhow::Result<()> {
    let status = Command::new("ip").args(arguments.split(' ')).status().context("running ip")?;
    ensure!(status.success(), "ip {arguments} ended with {status}");
    Ok(())
}

fn a_tap_that_is_deleted_meanwhile_is_refused_and_the_guest_goes_on() -> anyhow::Result<()> {
    network()?;
    let host = Host::new()?;
    let mut vm = boot(&host, "virtio-net-pci,id=net0,tap=t0".into())?;
    for mode in CprMode::ALL {
        vm.handover(mode).and_then(|_| vm.goes_on()).with_context(|| format!("over {mode}"))?;
    }
    ip("link del t0")?;
    let target = host.target()?;
    vm.transfer_to(&target.socket)?.must_say(3, "net0.tap")?;
    vm.save("exec", &[])?.must_say(3, "net0.tap")?;
    for (mode, code) in [("transfer", 3), ("exec", 3), ("reboot", 0)] {
        vm.save("check", &["--mode", mode])?.must_be(code)?;
    }
    vm.becomes("running")?;
    vm.goes_on()?;
    // A tap of that name is all that a reboot needs.
    ip("tuntap add dev t0 mode tap")?;
    vm.reboot()?;
    vm.goes_on()?;
    vm.transfer()?;
    vm.goes_on()
}

fn a_tap_given_as_a_descriptor_goes_along_and_blocks_a_reboot() -> anyhow::Result<()> {
    network()?;
    let tap = Tap::open("t0", 1)?;
    let tap = tap.queues()[0].as_fd().try_clone_to_owned()?;
    fcntl(tap.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
    let host = Host::new()?;
    let mut vm = boot(&host, format!("virtio-net-pci,id=net0,fds={}", tap.as_raw_fd()))?;
    drop(tap);
    for mode in [CprMode::CprTransfer, CprMode::CprExec, CprMode::CprTransfer] {
        vm.handover(mode).and_then(|_| vm.goes_on()).with_context(|| format!("over {mode}"))?;
    }
    let state = format!("file:{}", host.fresh("state").display());
    vm.save("check", &["--mode", "cpr-reboot"])?.must_say(3, "tap=t0")?;
    vm.save("reboot", &["--to", &state])?.must_say(3, "given as a descriptor")?;
    vm.goes_on()
}
