//! Guests that run before all of their RAM is read from the file that it was saved to.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use cpr_tests::guests::{Guest, Mode};
use cpr_tests::harness::host::Host;
use cpr_tests::harness::process::Process;
use cpr_tests::harness::runner::Tier;
use cpr_tests::harness::vm::{Spec, Vm};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use serde_json::json;
use vmm_core::cpr::reboot::copy::Layout;

cpr_tests::tests!(
    Tier::Kvm,
    a_guest_runs_before_its_ram_is_read_and_finds_all_of_it,
    a_guest_that_is_saved_or_handed_over_while_its_ram_comes_in_takes_all_of_it_along,
    a_handover_that_waits_for_ram_can_be_called_off_and_the_guest_be_ended,
    a_guest_can_be_started_anew_while_its_ram_comes_in,
    a_damaged_chunk_ends_the_guest_that_runs_and_is_named,
    where_pages_cannot_be_waited_for_all_is_read_before,
);

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_mins(1);
/// Where the guest's RAM holds nothing of its own, in MiB.
const NOISE: std::ops::Range<u64> = 64..192;
/// What is in the log when the guest runs, and when nothing is missing any more.
const RUNS: &str = "of the guest's RAM are there; the rest comes while it runs";
const ALL: &str = "all of the guest's RAM is there";

/// A guest that was saved with its RAM, most of which is what cannot be packed.
struct Saved<'h> {
    host: &'h Host,
    vm: Vm<'h>,
    file: PathBuf,
    noise: Vec<u8>,
}

impl<'h> Saved<'h> {
    fn new(host: &'h Host, ram_file: bool) -> anyhow::Result<Self> {
        let spec = Spec { ram_file, memory_mib: NOISE.end + 64, ..Spec::new(Guest::patterns(Mode::Long), 2) };
        let mut vm = Vm::boot(host, spec)?;
        let mut noise = vec![0; MIB as usize];
        File::open("/dev/urandom")?.read_exact(&mut noise)?;
        for mib in NOISE {
            noise[..8].copy_from_slice(&mib.to_ne_bytes());
            vm.ram.file().write_all_at(&noise, mib * MIB)?;
        }
        let file = vm.save_with_ram()?;
        Ok(Self { host, vm, file, noise })
    }

    fn from(&self) -> String {
        format!("file:{}", self.file.display())
    }

    /// Starts a process that is to let it run at once. Nobody may map its RAM before all of that is there: who touches a page of it
    /// makes that.
    fn resume(&mut self) -> anyhow::Result<()> {
        self.vm.process = self.host.load(["resume", "--from", &self.from(), "--lazy"])?;
        self.vm.becomes("running")
    }

    /// It goes on, with all that its RAM held, which may be mapped by now.
    fn is_whole(&mut self) -> anyhow::Result<()> {
        self.vm.find_ram()?;
        self.vm.goes_on()?;
        self.holds_its_noise()
    }

    /// Its RAM holds what it held.
    fn holds_its_noise(&mut self) -> anyhow::Result<()> {
        let mut found = vec![0; MIB as usize];
        for mib in NOISE {
            self.noise[..8].copy_from_slice(&mib.to_ne_bytes());
            self.vm.ram.file().read_exact_at(&mut found, mib * MIB)?;
            ensure!(found == self.noise, "the RAM at {mib} MiB is not what was saved");
        }
        Ok(())
    }
}

fn a_guest_runs_before_its_ram_is_read_and_finds_all_of_it() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut saved = Saved::new(&host, false)?;
    saved.resume()?;
    let runs = saved.vm.process.says(RUNS, SOON)?;
    let amounts: Vec<u64> = runs.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    ensure!(
        matches!(amounts[..], [here, all] if here < 8 && all >= NOISE.end - NOISE.start),
        "the guest did not run before its RAM was read: {runs}"
    );
    saved.vm.process.says(ALL, SOON)?;
    saved.is_whole()?;
    let ram = saved.vm.ask("query-migrate")?["ram"].clone();
    ensure!(ram.is_null(), "all of the RAM is there, and query-migrate has {ram}");
    let state = format!("{}/fd", saved.vm.process.pid());
    let open = std::fs::read_dir(Path::new("/proc").join(state))?
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .find(|path| path.to_string_lossy().contains("userfaultfd") || *path == saved.file);
    ensure!(open.is_none(), "{open:?} is open still");
    saved.vm.transfer()?;
    saved.vm.goes_on()?;
    saved.holds_its_noise()
}

fn a_guest_that_is_saved_or_handed_over_while_its_ram_comes_in_takes_all_of_it_along() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut saved = Saved::new(&host, false)?;
    saved.resume()?;
    saved.file = saved.vm.save_with_ram()?;
    saved.resume()?;
    saved.vm.transfer()?;
    saved.is_whole()?;
    saved.file = saved.vm.save_with_ram()?;
    saved.resume()?;
    saved.vm.exec()?;
    saved.is_whole()
}

fn a_handover_that_waits_for_ram_can_be_called_off_and_the_guest_be_ended() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut saved = Saved::new(&host, false)?;
    saved.resume()?;
    let save = saved.vm.start("reboot", &["--copy-ram", "--to", "file:again.state"])?;
    let mut monitor = saved.vm.monitor()?;
    let begun = |info: &serde_json::Value| info["status"] == "setup" || info["status"] == "active";
    while !begun(&monitor.execute("query-migrate", &json!({}))?) {}
    monitor.execute("migrate_cancel", &json!({}))?;
    save.finish()?.must_say(1, "cancelled")?;
    monitor.execute("quit", &json!({}))?;
    let ended = saved.vm.process.wait(SOON)?;
    ensure!(ended.success(), "it ended with {ended}: {}", saved.vm.process.log());
    Ok(())
}

fn a_guest_can_be_started_anew_while_its_ram_comes_in() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut saved = Saved::new(&host, false)?;
    saved.resume()?;
    let mut monitor = saved.vm.monitor()?;
    monitor.execute("system_reset", &json!({}))?;
    monitor.wait_event("RESET", SOON)?;
    saved.vm.find_ram()?;
    saved.vm.goes_on()?;
    let mut found = [0; 4096];
    saved.vm.ram.file().read_exact_at(&mut found, NOISE.start * MIB)?;
    ensure!(found == [0; 4096], "the guest has RAM of before it was started anew");
    saved.vm.transfer()?;
    saved.vm.goes_on()
}

fn a_damaged_chunk_ends_the_guest_that_runs_and_is_named() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut saved = Saved::new(&host, false)?;
    let file = File::options().read(true).write(true).open(&saved.file)?;
    let chunks = Layout::of(&file, file.metadata()?.len())?.chunks.context("a file without RAM")?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, chunks.end - 1000)?;
    file.write_all_at(&[byte[0] ^ 0x10], chunks.end - 1000)?;
    drop(file);
    let check = host.command("cpr-load")?.args(["check", "--from", &saved.from()]).output()?;
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    ensure!(check.status.code() == Some(3) && said.contains("checksum"), "check says: {said}");

    saved.vm.process = host.load(["resume", "--from", &saved.from(), "--lazy"])?;
    let ended = saved.vm.process.wait(SOON)?;
    let log = saved.vm.process.log();
    ensure!(ended.code() == Some(4), "it ended with {ended}: {log}");
    for words in [RUNS, "RAM at 0x", "checksum", "cannot go on", &saved.file.display().to_string()] {
        ensure!(log.contains(words), "it did not say '{words}', but: {log}");
    }
    let again = host.command("cpr-load")?.args(["resume", "--from", &saved.from()]).output()?;
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    ensure!(said.contains("loaded already"), "it was loaded again: {said}");
    Ok(())
}

fn where_pages_cannot_be_waited_for_all_is_read_before() -> anyhow::Result<()> {
    let host = Host::new()?;
    for (ram_file, why) in [(true, "its RAM is of the kind File"), (false, "userfaultfd")] {
        let mut saved = Saved::new(&host, ram_file)?;
        let mut command = host.command("cpr-load")?;
        command.args(["resume", "--from", &saved.from(), "--lazy"]);
        if !ram_file {
            let filter = without_userfaultfd()?;
            // SAFETY: two system calls, which are safe between fork and exec.
            unsafe {
                command.pre_exec(move || seccompiler::apply_filter(&filter).map_err(std::io::Error::other))
            };
        }
        saved.vm.process = Process::start("whole", &mut command, host.path())?;
        saved.vm.becomes("running")?;
        let log = saved.vm.process.log();
        ensure!(log.contains("all of the RAM is read before the guest runs") && log.contains(why), "{log}");
        ensure!(!log.contains(RUNS), "{log}");
        saved.is_whole()?;
        std::fs::remove_file(host.path().join("whole.log"))?;
    }
    Ok(())
}

/// A filter that refuses to make a userfaultfd, by the system call and by the device.
fn without_userfaultfd() -> anyhow::Result<BpfProgram> {
    /// `USERFAULTFD_IOC_NEW`.
    const NEW: u64 = 0xaa00;
    let new = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, NEW)?;
    let rules = [(libc::SYS_userfaultfd, Vec::new()), (libc::SYS_ioctl, vec![SeccompRule::new(vec![new])?])];
    let (pass, refuse) = (SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32));
    let filter = SeccompFilter::new(rules.into(), pass, refuse, std::env::consts::ARCH.try_into()?)?;
    Ok(filter.try_into()?)
}
