//! State files: what does not belong together is not put together.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cpr_tests::guests::{Guest, Mode};
use cpr_tests::harness::host::{Host, Save};
use cpr_tests::harness::process::Process;
use cpr_tests::harness::runner::Tier;
use cpr_tests::harness::vm::{Spec, Vm};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use vmm_core::monitor::client::Client;

cpr_tests::tests!(
    Tier::Kvm,
    a_file_whose_ram_is_another_guests_is_refused,
    a_file_whose_ram_was_never_a_guests_is_refused,
    a_boot_in_ram_in_which_a_saved_guest_waits_is_refused_until_that_is_given_up,
    a_file_in_which_a_guest_waits_is_not_written_over,
    a_file_is_not_loaded_a_second_time_over_ram_that_went_on,
    an_image_that_was_changed_is_refused_until_that_is_insisted_on,
    a_damaged_or_truncated_file_is_refused_and_changes_nothing,
    check_and_inspect_say_what_a_file_is_without_touching_it,
    ram_that_is_copied_goes_along_and_takes_no_more_room_than_it_must,
    a_file_with_ram_is_loaded_once_and_a_copy_of_it_never,
    ram_that_is_being_copied_keeps_nobody_waiting_and_can_be_called_off,
    a_guest_that_is_to_end_while_it_is_saved_is_asked_to_when_that_is_called_off,
    a_file_with_ram_that_is_damaged_or_cut_is_refused_and_the_whole_one_loaded,
);

/// A guest that was saved, and whose process has ended.
struct Saved<'h> {
    vm: Vm<'h>,
    file: PathBuf,
}

impl<'h> Saved<'h> {
    fn new(host: &'h Host) -> anyhow::Result<Self> {
        Self::with(host, Vec::new())
    }

    fn with(host: &'h Host, devices: Vec<String>) -> anyhow::Result<Self> {
        let mut vm = Vm::boot(host, Spec { devices, ..Spec::new(Guest::patterns(Mode::Long), 2) })?;
        let file = host.fresh("state");
        vm.save("reboot", &["--to", &format!("file:{}", file.display())])?.must_be(0)?;
        vm.ended()?;
        Ok(Self { vm, file })
    }

    fn ram_file(&self) -> anyhow::Result<PathBuf> {
        self.vm.ram_file().context("its RAM is no file")
    }

    /// Loads it and expects it to go on.
    fn goes_on(self, host: &'h Host) -> anyhow::Result<Vm<'h>> {
        self.goes_on_with(host, &[])
    }

    fn goes_on_with(mut self, host: &'h Host, more: &[&str]) -> anyhow::Result<Vm<'h>> {
        let from = format!("file:{}", self.file.display());
        self.vm.process = host.load(["resume", "--from", &from].iter().chain(more))?;
        self.vm.becomes("running")?;
        self.vm.goes_on()?;
        // Only its load may have gone before others.
        let (own, levels) = (nice_levels("self")?, nice_levels(&self.vm.process.pid().to_string())?);
        ensure!(
            levels.iter().all(|level| own.contains(level)),
            "its threads are at nice levels {levels:?}, the process that started it at {own:?}"
        );
        Ok(self.vm)
    }
}

/// The nice levels of a process's threads.
fn nice_levels(pid: &str) -> anyhow::Result<Vec<String>> {
    let mut levels = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // One that has ended meanwhile has none.
        let Ok(stat) = std::fs::read_to_string(task?.path().join("stat")) else { continue };
        let (_, after_name) = stat.rsplit_once(") ").context("a thread without a name")?;
        levels.push(after_name.split(' ').nth(16).context("a thread without a nice level")?.to_owned());
    }
    Ok(levels)
}

/// What `cpr-load VERB --from file:FILE …` says when it ends, and whether it ended well.
fn load(host: &Host, verb: &str, file: &Path, more: &[&str]) -> anyhow::Result<(bool, String)> {
    let mut command: Command = host.command("cpr-load")?;
    let from = format!("file:{}", file.display());
    let output = command.args([verb, "--from", &from]).args(more).output().context("running cpr-load")?;
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    Ok((output.status.success(), said))
}

fn refused(host: &Host, file: &Path, more: &[&str], says: &str) -> anyhow::Result<()> {
    let (loaded, said) = load(host, "resume", file, more)?;
    ensure!(!loaded, "{} was loaded: {said}", file.display());
    ensure!(said.contains(says), "cpr-load did not say '{says}', but: {said}");
    ensure!(!said.contains("panicked"), "cpr-load panicked: {said}");
    Ok(())
}

fn a_file_whose_ram_is_another_guests_is_refused() -> anyhow::Result<()> {
    let host = Host::new()?;
    let (one, other) = (Saved::new(&host)?, Saved::new(&host)?);
    let path = format!("memory.path={}", other.ram_file()?.display());
    refused(&host, &one.file, &["--set", &path], "this RAM is of guest")?;
    one.vm.stands_still()?;
    one.goes_on(&host)?;
    other.goes_on(&host).map(drop)
}

fn a_file_whose_ram_was_never_a_guests_is_refused() -> anyhow::Result<()> {
    let host = Host::new()?;
    let saved = Saved::new(&host)?;
    let blank = host.fresh("ram");
    let size = std::fs::metadata(saved.ram_file()?).context("its RAM")?.len();
    std::fs::File::create(&blank).and_then(|file| file.set_len(size)).context("making a blank file")?;
    refused(&host, &saved.file, &["--set", &format!("memory.path={}", blank.display())], "no stamp")?;
    saved.goes_on(&host).map(drop)
}

fn a_boot_in_ram_in_which_a_saved_guest_waits_is_refused_until_that_is_given_up() -> anyhow::Result<()> {
    let host = Host::new()?;
    let boot = |vm: &Vm<'_>, more: &[&str]| -> anyhow::Result<Command> {
        let ram = vm.ram_file().context("its RAM is no file")?;
        let rom = host.path().join(format!("{}.rom", vm.name.trim_start_matches("vm")));
        let mut command = host.command("cpr-load")?;
        command.args(["boot", "--name", "other", "--firmware"]).arg(rom);
        command.args(["--memory", &format!("size=32M,backing=file,path={}", ram.display())]).args(more);
        Ok(command)
    };
    let saved = Saved::new(&host)?;
    let refused = boot(&saved.vm, &[])?.output().context("running cpr-load")?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        !refused.status.success() && said.contains("--discard-saved"),
        "the boot was not refused: {said}"
    );
    // Nothing was touched.
    let mut vm = saved.goes_on(&host)?;

    let file = host.fresh("state");
    vm.save("reboot", &["--to", &format!("file:{}", file.display())])?.must_be(0)?;
    vm.ended()?;
    let other = Process::start("other", &mut boot(&vm, &["--discard-saved"])?, host.path())?;
    vm.process = other;
    vm.name = "other".into();
    vm.becomes("running")?;
    refused_as_in_use_or_of_a_cold_boot(&host, &file, &mut vm)
}

/// The state file of a guest that was given up: while another runs in its RAM, and when that has ended.
fn refused_as_in_use_or_of_a_cold_boot(host: &Host, file: &Path, vm: &mut Vm<'_>) -> anyhow::Result<()> {
    refused(host, file, &[], "in use by another guest")?;
    vm.save("quit", &[])?.must_be(0)?;
    vm.ended()?;
    refused(host, file, &[], "it is of a cold boot")
}

fn a_file_in_which_a_guest_waits_is_not_written_over() -> anyhow::Result<()> {
    for more in [&[][..], &["--copy-ram"]] {
        let host = Host::new()?;
        let (mut first, mut other) = (
            Vm::boot(&host, Spec::new(Guest::patterns(Mode::Long), 1))?,
            Vm::boot(&host, Spec::new(Guest::patterns(Mode::Long), 1))?,
        );
        let file = host.fresh("state");
        let to = format!("file:{}", file.display());
        let save = |vm: &mut Vm<'_>| vm.save("reboot", &[&["--to", &to][..], more].concat());
        save(&mut first)?.must_be(0)?;
        first.ended()?;
        other
            .save("check", &["--mode", "reboot", "--to", &to])?
            .must_say(3, "a guest that was saved waits in")?;
        save(&mut other)?.must_say(3, "a guest that was saved waits in")?;
        other.goes_on()?;
        if more.is_empty() {
            first.process = host.load(["resume", "--from", &to])?;
        } else {
            first.load_with_ram(&file)?;
        }
        first.becomes("running")?;
        first.goes_on()?;
        // It was loaded: the file is worth nothing.
        save(&mut other)?.must_be(0)?;
        other.ended()?;
        save(&mut first)?.must_say(3, "a guest that was saved waits in")?;
        first.goes_on()?;
    }
    Ok(())
}

fn a_file_is_not_loaded_a_second_time_over_ram_that_went_on() -> anyhow::Result<()> {
    let host = Host::new()?;
    let saved = Saved::new(&host)?;
    let kept = host.fresh("copy");
    std::fs::copy(&saved.file, &kept).context("copying the state file")?;
    let vm = saved.goes_on(&host)?;
    refused(&host, &kept, &[], "pc.ram").context("while its guest runs")?;
    vm.goes_on()?;
    drop(vm);
    refused(&host, &kept, &[], "loaded already").context("after its guest has gone")
}

fn an_image_that_was_changed_is_refused_until_that_is_insisted_on() -> anyhow::Result<()> {
    let host = Host::new()?;
    let image = host.fresh("image");
    std::fs::write(&image, [1; 8192]).context("making an image")?;
    let saved = Saved::with(&host, vec![format!("virtio-blk-pci,id=disk0,path={}", image.display())])?;
    std::fs::write(&image, [2; 4096]).context("changing the image")?;
    for says in ["disk0", "size was 8192 bytes and is 4096 bytes", "--set disk0.changed=accept"] {
        refused(&host, &saved.file, &[], says)?;
    }
    saved.vm.stands_still()?;
    saved.goes_on_with(&host, &["--set", "disk0.changed=accept"]).map(drop)
}

fn a_damaged_or_truncated_file_is_refused_and_changes_nothing() -> anyhow::Result<()> {
    let host = Host::new()?;
    let saved = Saved::new(&host)?;
    let whole = std::fs::read(&saved.file).context("reading the state file")?;
    let damaged = host.fresh("damaged");
    let write = |bytes: &[u8]| {
        std::fs::write(&damaged, bytes)?;
        std::fs::set_permissions(&damaged, std::os::unix::fs::PermissionsExt::from_mode(0o600))
    };
    for length in [0, 1, 16, 64, whole.len() / 2, whole.len() - 1] {
        write(&whole[..length]).context("writing a truncated file")?;
        refused(&host, &damaged, &[], "damaged").with_context(|| format!("truncated to {length} bytes"))?;
    }
    for step in 0..24 {
        let at = step * whole.len() / 24;
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        write(&bytes).context("writing a damaged file")?;
        refused(&host, &damaged, &[], "damaged").with_context(|| format!("byte {at} flipped"))?;
    }
    saved.goes_on(&host).map(drop)
}

fn check_and_inspect_say_what_a_file_is_without_touching_it() -> anyhow::Result<()> {
    let host = Host::new()?;
    let saved = Saved::new(&host)?;
    let (fits, said) = load(&host, "check", &saved.file, &[])?;
    ensure!(fits, "check: {said}");
    let (fits, said) = load(&host, "check", &saved.file, &["--set", "cpu.mask=sse3"])?;
    ensure!(!fits && said.contains("sse3"), "check without sse3: {said}");
    let output = host.command("cpr-load")?.arg("inspect").arg(&saved.file).arg("--json").output();
    let output = output.context("running cpr-load inspect")?;
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).context("inspect's output")?;
    ensure!(json.to_string().contains(&saved.vm.name), "inspect does not name the guest: {json}");
    saved.goes_on(&host).map(drop)
}

/// A guest with its RAM in a memfd, or in a file.
fn boot(host: &Host, ram_file: bool) -> anyhow::Result<Vm<'_>> {
    Vm::boot(host, Spec { ram_file, ..Spec::new(Guest::patterns(Mode::Long), 2) })
}

fn ram_that_is_copied_goes_along_and_takes_no_more_room_than_it_must() -> anyhow::Result<()> {
    let host = Host::new()?;
    for ram_file in [false, true] {
        let mut vm = boot(&host, ram_file)?;
        let used = |vm: &Vm| anyhow::Ok(vm.ram.file().metadata()?.blocks() * 512);
        let before = used(&vm)?;
        for _ in 0..2 {
            let file = vm.save_with_ram()?;
            let length = file.metadata()?.len();
            // The state beside the RAM is some ten KiB.
            ensure!(
                length < before + (1 << 20),
                "{before} bytes of RAM are in use, and the file has {length}"
            );
            let (fits, said) = load(&host, "check", &file, &[])?;
            ensure!(fits, "check says: {said}");
            let output = host.command("cpr-load")?.arg("inspect").arg(&file).output()?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(said.contains("ram-copy") && said.contains(&vm.name), "inspect says: {said}");
            vm.load_with_ram(&file)?;
            vm.goes_on()?;
        }
        let after = used(&vm)?;
        ensure!(after < before + (1 << 20), "{before} bytes of RAM were in use, and now {after}");
        vm.transfer()?;
        vm.goes_on()?;
    }
    Ok(())
}

fn a_file_with_ram_is_loaded_once_and_a_copy_of_it_never() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = boot(&host, false)?;
    let file = vm.save_with_ram()?;
    let copy = host.fresh("copy");
    std::fs::copy(&file, &copy).context("copying the state file")?;
    refused(&host, &copy, &[], "is a copy of the one that was saved").context("before")?;
    let renamed = host.fresh("renamed");
    std::fs::rename(&file, &renamed).context("renaming the state file")?;
    vm.load_with_ram(&renamed)?;
    vm.goes_on()?;
    refused(&host, &copy, &[], "is a copy of the one that was saved").context("after")?;
    refused(&host, &renamed, &[], "loaded already").context("while its guest runs")?;
    drop(vm);
    refused(&host, &renamed, &[], "loaded already").context("after its guest has gone")?;
    // Its inode is free again.
    std::fs::remove_file(&renamed).context("removing the state file")?;
    std::fs::copy(&copy, &renamed).context("putting the copy in its place")?;
    refused(&host, &renamed, &[], "is a copy of the one that was saved").context("in its place")
}

fn a_file_with_ram_that_is_damaged_or_cut_is_refused_and_the_whole_one_loaded() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = boot(&host, false)?;
    let path = vm.save_with_ram()?;
    let length = path.metadata()?.len();
    let file = std::fs::File::options().read(true).write(true).open(&path)?;
    // Whatever is wrong with it, it is said of this file.
    let named = path.display().to_string();
    // In the stamp, in every part of the RAM and of the state, and in the trailer.
    let places = [0, 8, 20, 4096, length - 1, length - 10].into_iter();
    for at in places.chain((4096..length).step_by(length as usize / 40)) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        file.write_all_at(&[byte[0] ^ 0x10], at)?;
        refused(&host, &path, &[], &named).with_context(|| format!("with byte {at} of {length} damaged"))?;
        file.write_all_at(&byte, at)?;
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, 0)?;
    for cut in [0, 7, 4095, 4096, length / 2, length - 16, length - 1] {
        file.set_len(cut)?;
        refused(&host, &path, &[], &named).with_context(|| format!("cut to {cut} of {length}"))?;
        if cut > 8192 {
            let output = host.command("cpr-load")?.arg("inspect").arg(&path).output()?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(said.contains("it holds RAM, and ends before its end"), "inspect says: {said}");
        }
        file.set_len(length)?;
        file.write_all_at(&bytes[cut as usize..], cut)?;
    }
    vm.load_with_ram(&path)?;
    vm.goes_on()
}

/// A guest whose RAM is being copied into a file.
struct Copying<'h> {
    vm: Vm<'h>,
    file: PathBuf,
    save: Save,
    monitor: Client,
    /// What `query-migrate` says of its RAM.
    ram: Value,
}

impl<'h> Copying<'h> {
    fn begin(host: &'h Host) -> anyhow::Result<Self> {
        const SOON: Duration = Duration::from_mins(1);
        let vm = Vm::boot(host, Spec { memory_mib: 768, ..Spec::new(Guest::patterns(Mode::Long), 1) })?;
        // Nothing that could be packed.
        let mut noise = vec![0; 1 << 20];
        File::open("/dev/urandom")?.read_exact(&mut noise)?;
        for mib in 64..768 {
            vm.ram.file().write_all_at(&noise, mib << 20)?;
        }
        let file = host.fresh("state");
        let save = vm.start("reboot", &["--copy-ram", "--to", &format!("file:{}", file.display())])?;
        let mut monitor = vm.monitor()?;
        let deadline = Instant::now() + SOON;
        let ram = loop {
            let said = monitor.execute("query-migrate", &json!({}))?;
            if said["ram"]["transferred"].as_u64().is_some_and(|bytes| bytes > 0) {
                break said["ram"].clone();
            }
            ensure!(Instant::now() < deadline, "no RAM is being copied: {said}");
        };
        Ok(Self { vm, file, save, monitor, ram })
    }

    /// Calls it off.
    fn cancel(mut self) -> anyhow::Result<Vm<'h>> {
        self.monitor.execute("migrate_cancel", &json!({}))?;
        self.save.finish()?.must_say(1, "cancelled")?;
        ensure!(!self.file.exists(), "there is a file of a save that was called off");
        Ok(self.vm)
    }
}

fn ram_that_is_being_copied_keeps_nobody_waiting_and_can_be_called_off() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut copying = Copying::begin(&host)?;
    let Copying { monitor, ram, .. } = &mut copying;
    ensure!(ram["total"].as_u64() >= Some(704 << 20) && ram["remaining"].as_u64() > Some(0), "{ram}");
    // Whoever asks is answered, and who would change something is refused.
    let state = monitor.execute("query-status", &json!({}))?["status"].clone();
    ensure!(state == "finish-migrate", "the guest is {state}");
    let refused = monitor.execute("cont", &json!({})).err().context("a guest that is saved went on")?;
    let why = refused.command_error().context("nothing was answered")?;
    ensure!(why.desc.contains("finish-migrate"), "{why}");
    copying.cancel()?.goes_on()
}

fn a_guest_that_is_to_end_while_it_is_saved_is_asked_to_when_that_is_called_off() -> anyhow::Result<()> {
    const SOON: Duration = Duration::from_secs(20);
    let host = Host::new()?;
    // One that heeds no power button: whoever saves it is to hear how that ended before it is gone.
    let mut copying = Copying::begin(&host)?;
    copying.vm.process.signal(Signal::SIGTERM)?;
    copying.vm.process.says("is being handed over", SOON)?;
    let mut vm = copying.cancel()?;
    vm.process.says("asked the guest to power off", SOON)?;
    vm.goes_on()?;
    vm.process.signal(Signal::SIGTERM)?;
    ensure!(vm.process.wait(SOON)?.success(), "it ended otherwise: {}", vm.process.log());
    Ok(())
}
