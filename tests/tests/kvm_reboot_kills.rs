//! A guest on its way through a file is in one process, or waits, or died with its process: whoever is killed when.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use cpr_tests::guests::{Guest, Mode, Work};
use cpr_tests::harness::host::Host;
use cpr_tests::harness::process::Process;
use cpr_tests::harness::random::{self, Random};
use cpr_tests::harness::runner::Tier;
use cpr_tests::harness::vm::{Spec, Vm};
use nix::sys::signal::Signal;

cpr_tests::tests!(
    Tier::Kvm,
    a_source_killed_at_a_random_moment_leaves_a_file_that_is_loaded_or_worth_nothing,
    of_two_loaders_one_of_whom_is_killed_at_a_random_moment_one_or_none_has_the_guest,
);

const SOON: Duration = Duration::from_secs(30);

fn boot(host: &Host) -> anyhow::Result<Vm<'_>> {
    Vm::boot(host, Spec::new(Guest::new(Work::Heartbeat, Mode::Long), 2))
}

/// Where a guest is that was on its way.
#[derive(Clone, Copy)]
enum Fate {
    GoesOn,
    Died,
}

/// Goes through all rounds, each with the guest of the one before it if that lives, and says how they ended. Its RAM is copied in every other.
fn rounds(
    each: impl for<'h> Fn(&'h Host, &mut Vm<'h>, &[&str], &mut Random) -> anyhow::Result<Fate>,
) -> anyhow::Result<()> {
    let (rounds, mut random) = (random::kills(30), Random::seeded());
    let host = Host::new()?;
    let mut vm = boot(&host)?;
    let mut fates = [0; 2];
    for round in 0..rounds {
        let more: &[&str] = if round % 2 == 0 { &[] } else { &["--copy-ram"] };
        let fate = each(&host, &mut vm, more, &mut random).with_context(|| random.told(round))?;
        fates[fate as usize] += 1;
        if let Fate::Died = fate {
            vm.stands_still()?;
            vm = boot(&host)?;
        }
    }
    let [went_on, died] = fates;
    println!("note: of {rounds} guests {went_on} went on, {died} died with their process");
    Ok(())
}

fn load(host: &Host, file: &Path) -> anyhow::Result<Process> {
    host.load(["resume", "--from", &format!("file:{}", file.display())])
}

/// Waits until a loader has the guest, or has ended; true if it has the guest.
fn has_it(loader: &mut Process) -> anyhow::Result<bool> {
    let deadline = Instant::now() + SOON;
    loop {
        let running = loader.is_running();
        if loader.log().contains("is here, running") {
            return Ok(running);
        }
        if !running {
            return Ok(false);
        }
        ensure!(Instant::now() < deadline, "a loader neither has the guest nor ends: {}", loader.log());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The guest goes on in this process, and its file is worth nothing any more.
fn goes_on(host: &Host, vm: &mut Vm<'_>, loader: Process, file: &Path) -> anyhow::Result<Fate> {
    vm.process = loader;
    vm.becomes("running")?;
    vm.goes_on()?;
    let mut second = load(host, file)?;
    ensure!(!has_it(&mut second)?, "the guest was loaded a second time: {}", second.log());
    vm.goes_on()?;
    Ok(Fate::GoesOn)
}

fn a_source_killed_at_a_random_moment_leaves_a_file_that_is_loaded_or_worth_nothing() -> anyhow::Result<()> {
    rounds(|host, vm, more, random| {
        let file = host.fresh("state");
        let save = vm.start("reboot", &[&["--to", &format!("file:{}", file.display())], more].concat())?;
        std::thread::sleep(Duration::from_micros(random.below(80_000)));
        // It may have ended.
        let _ = vm.process.signal(Signal::SIGKILL);
        let outcome = save.finish()?;
        vm.process.wait(SOON)?;
        let said = outcome.facts.to_string();
        let told = !said.contains("nobody answers now") || said.contains("cpr-load check --from file:");
        ensure!(told, "where to look for the guest is not said: {said}");
        let mut loader = load(host, &file)?;
        if has_it(&mut loader)? {
            return goes_on(host, vm, loader, &file);
        }
        ensure!(outcome.code != 0, "a guest that was saved is lost: {}", loader.log());
        Ok(Fate::Died)
    })
}

fn of_two_loaders_one_of_whom_is_killed_at_a_random_moment_one_or_none_has_the_guest() -> anyhow::Result<()> {
    rounds(|host, vm, more, random| {
        let file = host.fresh("state");
        vm.save("reboot", &[&["--to", &format!("file:{}", file.display())], more].concat())?.must_be(0)?;
        vm.ended()?;
        let (mut victim, mut other) = (load(host, &file)?, load(host, &file)?);
        std::thread::sleep(Duration::from_micros(random.below(60_000)));
        victim
            .signal(Signal::SIGKILL)
            .or_else(|error| if victim.is_running() { Err(error) } else { Ok(()) })?;
        victim.wait(SOON)?;
        if has_it(&mut other)? {
            ensure!(
                !victim.log().contains("is here, running"),
                "two processes had the guest: {}",
                victim.log()
            );
            return goes_on(host, vm, other, &file);
        }
        // Nobody holds it now: whoever comes next has it, if nobody has had it.
        let mut last = load(host, &file)?;
        let last_has_it = has_it(&mut last)?;
        let claimed = victim.log().contains("is here, running");
        match (last_has_it, claimed) {
            (true, true) => bail!("two processes had the guest: {}", victim.log()),
            (true, false) => goes_on(host, vm, last, &file),
            (false, _) => {
                let said = last.log();
                ensure!(said.contains("loaded already"), "a guest that waits is not loaded: {said}");
                Ok(Fate::Died)
            }
        }
    })
}
