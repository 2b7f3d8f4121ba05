//! At no time do two processes run a guest, whichever dies when.
//!
//! The guest itself would see a second process: its count in RAM would not be what it wrote.

use std::time::Duration;

use anyhow::{Context, ensure};
use cpr_tests::guests::{Guest, Mode, Work};
use cpr_tests::harness::host::Host;
use cpr_tests::harness::proxy::{Action, Moment, Proxy, Side};
use cpr_tests::harness::random::{self, Random};
use cpr_tests::harness::runner::Tier;
use cpr_tests::harness::vm::{Spec, Vm};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use vmm_core::cpr::transfer::message::{Message, Running, State};
use vmm_core::monitor::client::Client;

cpr_tests::tests!(
    Tier::Kvm,
    a_target_killed_after_its_claim_takes_the_guest_with_it,
    a_claim_that_nobody_heard_of_still_counts,
    either_side_killed_at_a_random_moment_leaves_one_owner_or_none,
    a_process_killed_at_a_random_moment_of_an_exec_leaves_one_owner_or_none,
);

fn boot(host: &Host) -> anyhow::Result<Vm<'_>> {
    Vm::boot(host, Spec::new(Guest::new(Work::Heartbeat, Mode::Long), 2))
}

/// The guest is gone, and the source, whose monitor's client `source` is, does not run it.
fn is_gone(vm: &Vm<'_>, source: &mut Client) -> anyhow::Result<()> {
    vm.stands_still()?;
    vm.ram.check(2)?;
    let refused = source.execute("cont", &json!({}));
    ensure!(refused.is_err(), "the source went on with a guest that was claimed: {refused:?}");
    vm.stands_still()
}

fn a_target_killed_after_its_claim_takes_the_guest_with_it() -> anyhow::Result<()> {
    let host = Host::new()?;
    let vm = boot(&host)?;
    let mut source = vm.monitor()?;
    let target = host.target()?;
    let pid = target.process.pid();
    let proxy = Proxy::start(host.fresh("proxy"), &target.socket, move |crossing| {
        // It says that it runs the guest; nobody hears it, and it dies.
        if crossing.from == Side::Target && crossing.frame.kind == Running::KIND {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            return Action::Swallow;
        }
        Action::Pass
    })?;
    let outcome = vm.save("transfer", &["--to", &format!("unix:{}", proxy.socket.display()), "--keep"])?;
    ensure!(matches!(outcome.code, 0 | 4), "cpr-save ended with {}: {}", outcome.code, outcome.facts);
    is_gone(&vm, &mut source)
}

fn a_claim_that_nobody_heard_of_still_counts() -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut vm = boot(&host)?;
    let target = host.target()?;
    let proxy = Proxy::start(host.fresh("proxy"), &target.socket, |crossing| {
        if crossing.from == Side::Target && crossing.frame.kind == Running::KIND {
            return Action::Hang;
        }
        Action::Pass
    })?;
    let to = format!("unix:{}", proxy.socket.display());
    let outcome = vm.save("transfer", &["--to", &to, "--downtime-limit", "500"])?;
    ensure!(matches!(outcome.code, 0 | 4), "cpr-save ended with {}: {}", outcome.code, outcome.facts);
    vm.process = target.process;
    vm.becomes("running")?;
    vm.goes_on()
}

fn either_side_killed_at_a_random_moment_leaves_one_owner_or_none() -> anyhow::Result<()> {
    let (rounds, mut random) = (random::kills(200), Random::seeded());
    let host = Host::new()?;
    let mut vm = boot(&host)?;
    let mut fates = [0; 3];
    for round in 0..rounds {
        let (next, fate) = kill_one(&host, vm, &mut random).with_context(|| random.told(round))?;
        vm = next;
        fates[fate as usize] += 1;
    }
    let [stayed, moved, died] = fates;
    println!(
        "note: of {rounds} guests {stayed} stayed in the source, {moved} moved, {died} died with their process"
    );
    Ok(())
}

/// Where a guest was after one side was killed.
#[derive(Clone, Copy)]
enum Fate {
    Stayed,
    Moved,
    Died,
}

/// Hands a guest over, kills one side on the way, sees that what is left is right, and gives a guest for the next round.
fn kill_one<'h>(host: &'h Host, mut vm: Vm<'h>, random: &mut Random) -> anyhow::Result<(Vm<'h>, Fate)> {
    let mut source = vm.monitor()?;
    let mut target = host.target()?;
    let kill_source = random.below(2) == 0;
    let victim = if kill_source { vm.process.pid() } else { target.process.pid() };
    // Half of the deaths are around the state, where ownership is decided; a delay puts them between the frames, too.
    let (frame, delay) = (random.below(12), Duration::from_micros(random.below(3000)));
    let around_state = random.below(2) == 0;
    let mut crossed = 0;
    let proxy = Proxy::start(host.fresh("proxy"), &target.socket, move |crossing| {
        crossed += 1;
        let here = if around_state {
            crossing.frame.kind == State::KIND && crossing.moment == Moment::After
        } else {
            crossed == frame + 1
        };
        if here {
            std::thread::spawn(move || {
                std::thread::sleep(delay);
                let _ = kill(Pid::from_raw(victim), Signal::SIGKILL);
            });
        }
        Action::Pass
    })?;
    let outcome = vm.save("transfer", &["--to", &format!("unix:{}", proxy.socket.display()), "--keep"])?;
    std::thread::sleep(Duration::from_millis(10));
    vm.ram.check(2)?;
    if kill_source {
        vm.process.wait(Duration::from_mins(1)).context("the source that was killed")?;
        drop(proxy);
        // The target has it, if it was offered; or nobody has.
        if target.process.is_running() && vm.counts()? {
            vm.process = target.process;
            vm.becomes("running")?;
            vm.goes_on()?;
            return Ok((vm, Fate::Moved));
        }
        vm.stands_still()?;
        return Ok((boot(host)?, Fate::Died));
    }
    target.process.wait(Duration::from_mins(1)).context("the target that was killed")?;
    if outcome.code == 1 {
        vm.becomes("running")?;
        vm.goes_on()?;
        return Ok((vm, Fate::Stayed));
    }
    ensure!(matches!(outcome.code, 0 | 4), "cpr-save ended with {}: {}", outcome.code, outcome.facts);
    is_gone(&vm, &mut source)?;
    Ok((boot(host)?, Fate::Died))
}

fn a_process_killed_at_a_random_moment_of_an_exec_leaves_one_owner_or_none() -> anyhow::Result<()> {
    let (rounds, mut random) = (random::kills(20), Random::seeded());
    let host = Host::new()?;
    let mut vm = boot(&host)?;
    let mut survived = 0;
    for round in 0..rounds {
        let (next, lived) = kill_in_exec(&host, vm, &mut random).with_context(|| random.told(round))?;
        vm = next;
        survived += usize::from(lived);
    }
    println!(
        "note: of {rounds} guests {survived} lived on, the others died with the process that they were in"
    );
    // With the new image killed while the guest is in the stopover, some must.
    ensure!(survived > 0, "no guest lived on");
    Ok(())
}

/// Has a guest's process execute its binary anew, kills it or the stopover on the way, sees that what is left is right, and
/// gives a guest for the next round. True if the guest lived on.
fn kill_in_exec<'h>(host: &'h Host, mut vm: Vm<'h>, random: &mut Random) -> anyhow::Result<(Vm<'h>, bool)> {
    let source = Pid::from_raw(vm.process.pid());
    let kill_stopover = random.below(3) == 0;
    let exec = vm.start("exec", &["--timeout", "5"])?;
    std::thread::sleep(Duration::from_micros(random.below(150_000)));
    let victim = if kill_stopover { child_of(source) } else { Some(source) };
    if let Some(victim) = victim {
        let _ = kill(victim, Signal::SIGKILL);
    }
    exec.finish()?;
    vm.ram.check(2)?;
    if !vm.counts()? {
        vm.stands_still()?;
        vm.ram.check(2)?;
        return Ok((boot(host)?, false));
    }
    vm.becomes("running")?;
    vm.goes_on()?;
    // Whichever process has it gives it away like any other.
    let target = host.target()?;
    vm.transfer_to(&target.socket)?.must_be(0)?;
    vm.process = target.process;
    vm.goes_on()?;
    Ok((vm, true))
}

/// The newest child of a process.
fn child_of(parent: Pid) -> Option<Pid> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    children.split_whitespace().last()?.parse().ok().map(Pid::from_raw)
}
