//! What a unit starts: a saved guest goes on, another is booted, and what cannot be told apart is neither.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cpr_tests::guests::{Guest, Mode};
use cpr_tests::harness::host::Host;
use cpr_tests::harness::process::Process;
use cpr_tests::harness::runner::Tier;
use cpr_tests::harness::vm::{Spec, Vm};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

cpr_tests::tests!(
    Tier::Kvm,
    a_guest_that_waits_goes_on_and_one_that_crashed_is_booted,
    what_waits_and_cannot_be_read_is_not_booted_over,
    a_guest_that_was_given_up_is_booted_and_never_comes_back,
    a_guest_whose_ram_is_not_there_yet_is_not_booted,
    a_guest_goes_where_it_is_best_kept_and_one_that_is_excepted_stays,
    a_guest_that_was_resumed_early_is_taken_over,
    a_guest_that_was_resumed_early_is_saved_from_there,
    a_guest_that_cannot_be_resumed_early_waits_for_its_unit,
    a_guest_that_runs_is_taken_from_nobody_who_has_not_resumed_it_early,
    a_guest_that_cannot_be_taken_over_goes_on_where_it_was,
    a_guest_whose_early_process_dies_is_booted,
);

/// For a process to end.
const DEADLINE: Duration = Duration::from_mins(1);

/// A guest, its configuration, and the directory it is saved in.
struct Unit<'h> {
    host: &'h Host,
    vm: Vm<'h>,
    saved: PathBuf,
}

impl<'h> Unit<'h> {
    fn boot(host: &'h Host) -> anyhow::Result<Self> {
        Self::boot_with(host, Vec::new())
    }

    fn boot_with(host: &'h Host, devices: Vec<String>) -> anyhow::Result<Self> {
        let saved = host.fresh("saved");
        std::fs::create_dir(&saved).context("making a directory")?;
        let spec = Spec { devices, ..Spec::new(Guest::patterns(Mode::Long), 2) };
        Ok(Self { host, vm: Vm::boot(host, spec)?, saved })
    }

    fn state(&self) -> PathBuf {
        self.saved.join(format!("{}.state", self.vm.name))
    }

    fn save(&mut self) -> anyhow::Result<()> {
        self.save_with(&[])
    }

    fn save_with(&mut self, more: &[&str]) -> anyhow::Result<()> {
        let to = format!("auto:{}", self.saved.display());
        self.vm.save("reboot", &[&["--to", &to], more].concat())?.must_be(0)?;
        self.vm.ended()
    }

    fn start_arguments(&self) -> anyhow::Result<Vec<OsString>> {
        let name = &self.vm.name;
        let rom = self.host.path().join(format!("{}.rom", name.trim_start_matches("vm")));
        let config = self.host.fresh("toml");
        let ram = self.vm.ram_file().context("its RAM is no file")?;
        let text = format!(
            "name = '{name}'\ncpus = 2\n[memory]\nsize = '32M'\nbacking = {{ type = 'file', path = '{}' }}\n[boot]\nfirmware = '{}'\n",
            ram.display(),
            rom.display()
        );
        std::fs::write(&config, text).context("writing the configuration")?;
        let saved = format!("dir:{}", self.saved.display());
        Ok(["start".into(), "--config".into(), config.into(), "--saved".into(), saved.into()].into())
    }

    fn start(&mut self) -> anyhow::Result<()> {
        self.start_with(&[])
    }

    fn start_with(&mut self, more: &[&str]) -> anyhow::Result<()> {
        let more = more.iter().map(OsString::from);
        self.vm.process = self.host.load(self.start_arguments()?.into_iter().chain(more))?;
        self.vm.becomes("running").with_context(|| format!("it said: {}", self.vm.process.log()))
    }

    /// Has the guest resumed early; what was said, and the process that has it.
    fn early(&self, code: i32) -> anyhow::Result<(String, Option<EarlyProcess>)> {
        let saved = format!("dir:{}", self.saved.display());
        let mut early = self.host.load(["early", &self.vm.name, "--saved", &saved])?;
        let status = early.wait(DEADLINE)?;
        let said = early.log();
        let pid = said.split("is here: process ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
        let process = pid.map(|pid| EarlyProcess(Pid::from_raw(pid)));
        ensure!(status.code() == Some(code), "it ended with {status}: {said}");
        Ok((said, process))
    }

    /// The same, for one that goes on.
    fn resumed_early(&self) -> anyhow::Result<EarlyProcess> {
        let (said, process) = self.early(0)?;
        let process = process.with_context(|| format!("it was not resumed: {said}"))?;
        self.vm.goes_on()?;
        Ok(process)
    }

    fn is_booted(&self) -> bool {
        self.vm.process.log().contains("is booted")
    }

    fn crashes(&mut self) -> anyhow::Result<()> {
        self.vm.process.signal(Signal::SIGKILL)?;
        self.vm.process.wait(DEADLINE).map(drop)
    }

    /// What `start` says when it fails, as it must.
    fn fails_to_start(&self) -> anyhow::Result<String> {
        let mut process: Process = self.host.load(self.start_arguments()?)?;
        let status = process.wait(DEADLINE)?;
        let said = process.log();
        ensure!(!status.success() && !said.contains("is booted"), "it was started: {said}");
        Ok(said)
    }
}

/// A process that has resumed a guest early. Killed on drop: it is nobody's child.
struct EarlyProcess(Pid);

impl EarlyProcess {
    fn ends(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + DEADLINE;
        let directory = PathBuf::from(format!("/proc/{}", self.0));
        // Nobody may wait for it; but it has what it had until its last thread is gone.
        let is_dead = || {
            let stat = std::fs::read_to_string(directory.join("stat"));
            let threads = std::fs::read_dir(directory.join("task")).map_or(0, Iterator::count);
            stat.map_or(true, |stat| stat.contains(") Z ") && threads <= 1)
        };
        while !is_dead() {
            ensure!(Instant::now() < deadline, "process {} has not ended", self.0);
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for EarlyProcess {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
    }
}

fn sweeps(unit: &Unit<'_>) -> u64 {
    (0..2).map(|cpu| unit.vm.ram.sweeps(cpu)).sum()
}

fn a_guest_that_waits_goes_on_and_one_that_crashed_is_booted() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut unit = Unit::boot(&host)?;
    unit.save()?;
    let before = sweeps(&unit);
    unit.start()?;
    unit.vm.goes_on()?;
    ensure!(sweeps(&unit) >= before, "the guest began anew: {} sweeps after {before}", sweeps(&unit));
    let report = unit.vm.ask("x-cpr-report")?;
    ensure!(
        report["mode"] == "cpr-reboot"
            && report["downtime-us"].as_u64() > Some(0)
            && report["clock"].is_string(),
        "the report does not say for how long it stood: {report}"
    );
    let phases = report["phases"].as_array().map(Vec::as_slice).unwrap_or_default();
    ensure!(phases.iter().any(|phase| phase["phase"] == "waited"), "the report has no wait: {report}");

    // It was loaded: its file is worth nothing now.
    ensure!(unit.state().exists(), "its file is gone");
    unit.crashes()?;
    unit.start()?;
    ensure!(unit.is_booted(), "a guest that crashed was not booted: {}", unit.vm.process.log());
    unit.vm.goes_on()
}

fn a_guest_that_was_given_up_is_booted_and_never_comes_back() -> anyhow::Result<()> {
    let host = Host::new()?;
    for more in [&[][..], &["--copy-ram"]] {
        let mut unit = Unit::boot(&host)?;
        unit.save_with(more)?;
        unit.start_with(&["--discard-saved"])?;
        ensure!(unit.is_booted(), "it was not booted: {}", unit.vm.process.log());
        unit.crashes()?;
        unit.start()?;
        ensure!(unit.is_booted(), "the guest from before came back: {}", unit.vm.process.log());
        unit.vm.goes_on()?;
    }
    Ok(())
}

fn a_guest_whose_ram_is_not_there_yet_is_not_booted() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut unit = Unit::boot(&host)?;
    unit.save()?;
    // As where a disk is not mounted yet.
    let ram = unit.vm.ram_file().context("its RAM is no file")?;
    let away = ram.with_extension("away");
    std::fs::rename(&ram, &away).context("moving its RAM away")?;
    std::os::unix::fs::symlink("/proc/version", &ram).context("putting something else there")?;
    let said = unit.fails_to_start()?;
    ensure!(said.contains("its RAM is not to be had"), "it does not say why: {said}");
    std::fs::rename(&away, &ram).context("moving its RAM back")?;
    unit.start()?;
    unit.vm.goes_on()
}

fn what_waits_and_cannot_be_read_is_not_booted_over() -> anyhow::Result<()> {
    let host = Host::new()?;
    let (mut unit, mut other) = (Unit::boot(&host)?, Unit::boot(&host)?);
    unit.save()?;
    other.save()?;
    let whole = std::fs::read(unit.state()).context("reading the state file")?;
    let broken = |bytes: &[u8], says: &str| -> anyhow::Result<()> {
        std::fs::write(unit.state(), bytes).context("writing the state file")?;
        let said = unit.fails_to_start()?;
        ensure!(said.contains(says), "it does not say '{says}': {said}");
        unit.vm.stands_still()
    };
    broken(&whole[..whole.len() / 2], ".state")?;
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    broken(&damaged, ".state")?;
    broken(&std::fs::read(other.state())?, "it holds guest")?;
    std::fs::write(unit.state(), &whole)?;
    unit.start()?;
    unit.vm.goes_on()?;
    other.start()?;
    other.vm.goes_on()
}

fn a_guest_goes_where_it_is_best_kept_and_one_that_is_excepted_stays() -> anyhow::Result<()> {
    let host = Host::new()?;
    let (mut unit, other) = (Unit::boot(&host)?, Unit::boot(&host)?);
    let to = format!("auto:{}", unit.saved.display());
    let except = |name: &str| ["--all", "--to", &to, "--except", name].map(str::to_owned);
    let run = |verb: &[&str], name: &str| {
        let rest = except(name);
        host.save(&verb.iter().copied().chain(rest.iter().map(String::as_str)).collect::<Vec<_>>())
    };
    // A name that nobody has may be a misspelt one.
    run(&["reboot"], "nobody")?.must_be(3)?;
    let checked = run(&["check", "--mode", "reboot"], &other.vm.name)?.must_be(0)?;
    let guests = &checked.facts["guests"];
    ensure!(
        guests.as_array().map(Vec::len) == Some(1)
            && guests[0]["from"] == format!("file:{}", Path::new(&unit.state()).display()),
        "checked were {guests}"
    );
    run(&["reboot"], &other.vm.name)?.must_be(0)?;
    other.vm.goes_on()?;
    unit.vm.ended()?;
    unit.start()?;
    unit.vm.goes_on()
}

fn a_guest_that_was_resumed_early_is_taken_over() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut unit = Unit::boot(&host)?;
    unit.save()?;
    let before = sweeps(&unit);
    let early = unit.resumed_early()?;
    let answer = unit.vm.ask("x-cpr-early")?;
    ensure!(
        answer["pid"] == early.0.as_raw() && answer["report"]["mode"] == "cpr-reboot",
        "it says {answer}"
    );
    // The binary at its path is the RAM disk's, and gone with that.
    unit.vm.save("exec", &[])?.must_say(3, "resumed it early")?;
    unit.start()?;
    early.ends()?;
    unit.vm.goes_on()?;
    ensure!(sweeps(&unit) >= before, "the guest began anew: {} sweeps after {before}", sweeps(&unit));
    let log = unit.vm.process.log();
    ensure!(log.contains("was resumed early: it is taken over"), "it was not taken over: {log}");
    // How long it stood is told of both.
    let report = unit.vm.ask("x-cpr-report")?;
    let stood = |of: &serde_json::Value| of["downtime-us"].as_u64() > Some(0);
    ensure!(
        report["mode"] == "cpr-reboot"
            && report["clock"].is_string()
            && stood(&report)
            && stood(&report["taken-over"])
            && report["taken-over"]["after-us"].as_u64() > Some(0),
        "the report is {report}"
    );
    let status = unit.vm.save("status", &[])?.must_be(0)?;
    ensure!(status.facts["migration"]["status"] == "completed", "its status is {}", status.facts);
    ensure!(unit.vm.ask("x-cpr-early").is_err(), "its unit's process says that it has resumed it early");
    unit.vm.exec()?;
    unit.vm.goes_on()
}

fn a_guest_that_was_resumed_early_is_saved_from_there() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut unit = Unit::boot(&host)?;
    unit.save()?;
    let early = unit.resumed_early()?;
    let to = format!("file:{}", unit.state().display());
    unit.vm.save("reboot", &["--to", &to])?.must_be(0)?;
    early.ends()?;
    unit.start()?;
    ensure!(!unit.is_booted(), "it was booted: {}", unit.vm.process.log());
    unit.vm.goes_on()
}

fn a_guest_that_cannot_be_resumed_early_waits_for_its_unit() -> anyhow::Result<()> {
    let host = Host::new()?;
    let disk = host.fresh("disk");
    std::fs::write(&disk, [0; 4096]).context("making a disk")?;
    let mut unit = Unit::boot_with(&host, vec![format!("virtio-blk-pci,path={}", disk.display())])?;
    unit.save()?;
    // As where the root file system is not there yet.
    let away = disk.with_extension("away");
    std::fs::rename(&disk, &away).context("moving its disk away")?;
    let (said, process) = unit.early(1)?;
    ensure!(process.is_none() && said.contains("is not resumed early"), "it said {said}");
    unit.vm.stands_still()?;
    std::fs::rename(&away, &disk).context("moving its disk back")?;
    unit.start()?;
    ensure!(!unit.is_booted(), "it was booted: {}", unit.vm.process.log());
    unit.vm.goes_on()
}

fn a_guest_that_runs_is_taken_from_nobody_who_has_not_resumed_it_early() -> anyhow::Result<()> {
    let host = Host::new()?;
    let unit = Unit::boot(&host)?;
    let (said, process) = unit.early(0)?;
    ensure!(process.is_none() && said.contains("was not saved"), "it said {said}");
    let mut second = host.load(unit.start_arguments()?)?;
    let status = second.wait(DEADLINE)?;
    ensure!(!status.success(), "a second one was started: {}", second.log());
    ensure!(second.log().contains("another process listens"), "it said {}", second.log());
    unit.vm.goes_on()
}

fn a_guest_that_cannot_be_taken_over_goes_on_where_it_was() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut unit = Unit::boot(&host)?;
    unit.save()?;
    let early = unit.resumed_early()?;
    // Both would meet there.
    let in_the_way = host.path().join("cpr").join(format!("{}.takeover", unit.vm.name));
    std::fs::create_dir(&in_the_way).context("making a directory")?;
    let said = unit.fails_to_start()?;
    ensure!(said.contains("goes on where it was"), "it said {said}");
    unit.vm.goes_on()?;
    std::fs::remove_dir(&in_the_way).context("removing a directory")?;
    unit.start()?;
    early.ends()?;
    unit.vm.goes_on()
}

fn a_guest_whose_early_process_dies_is_booted() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut unit = Unit::boot(&host)?;
    unit.save()?;
    let early = unit.resumed_early()?;
    kill(early.0, Signal::SIGKILL).context("killing the early process")?;
    early.ends()?;
    unit.start()?;
    ensure!(unit.is_booted(), "it was not booted: {}", unit.vm.process.log());
    unit.vm.goes_on()
}
