//! All guests of a host saved by one command: all of them, or none; and where each is when one fails.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use cpr_tests::guests::{Guest, Mode};
use cpr_tests::harness::host::Host;
use cpr_tests::harness::runner::{Skipped, Tier};
use cpr_tests::harness::vm::{Spec, Vm};
use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::Signal;
use serde_json::Value;

cpr_tests::tests!(
    Tier::Kvm,
    all_guests_are_saved_at_once_and_each_is_loaded_again,
    one_guest_that_cannot_go_keeps_all_of_them,
    where_room_ends_the_saved_are_saved_and_the_others_run_on,
);

/// For a process to end.
const DEADLINE: Duration = Duration::from_mins(1);

fn guests(host: &Host, count: usize) -> anyhow::Result<Vec<Vm<'_>>> {
    (0..count).map(|_| Vm::boot(host, Spec::new(Guest::patterns(Mode::Long), 1))).collect()
}

fn directory(host: &Host) -> anyhow::Result<PathBuf> {
    let directory = host.fresh("states");
    std::fs::create_dir(&directory).context("making a directory")?;
    Ok(directory)
}

/// `cpr-save reboot --all --to dir:DIRECTORY …` and `check` alike.
fn all(host: &Host, verb: &[&str], directory: &Path) -> anyhow::Result<cpr_tests::harness::host::Outcome> {
    host.save(&[verb, &["--all", "--to", &format!("dir:{}", directory.display())]].concat())
}

/// The names of the guests that a list of the outcome's is of.
fn names(list: &Value) -> Vec<&str> {
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(|entry| entry["guest"].as_str().or_else(|| entry.as_str())).collect()
}

/// Loads a saved guest in a new process, and waits for it to go on.
fn load(host: &Host, vm: &mut Vm<'_>, directory: &Path) -> anyhow::Result<()> {
    vm.ended()?;
    let file = directory.join(format!("{}.state", vm.name));
    vm.process = host.load(["resume", "--from", &format!("file:{}", file.display())])?;
    vm.becomes("running")?;
    vm.goes_on()
}

fn all_guests_are_saved_at_once_and_each_is_loaded_again() -> anyhow::Result<()> {
    let host = Host::new()?;
    let directory = directory(&host)?;
    let mut vms = guests(&host, 4)?;
    // Its socket stays, and nobody listens at it; and a process that waits for a guest has none.
    let mut killed = guests(&host, 1)?.remove(0);
    killed.process.signal(Signal::SIGKILL)?;
    killed.process.wait(DEADLINE)?;
    let mut waits = host.target()?;
    let mut names_of: Vec<_> = vms.iter().map(|vm| vm.name.clone()).collect();
    names_of.sort_unstable();

    let checked = all(&host, &["check", "--mode", "reboot"], &directory)?.must_be(0)?;
    ensure!(names(&checked.facts["guests"]) == names_of, "checked were {}", checked.facts);
    ensure!(std::fs::read_dir(&directory)?.next().is_none(), "a check has left a file");

    let saved = all(&host, &["reboot"], &directory)?.must_be(0)?;
    let mut found = names(&saved.facts["guests"]);
    found.sort_unstable();
    ensure!(found == names_of, "saved were {}", saved.facts);
    ensure!(saved.facts["guests"][0]["report"]["state-bytes"].is_u64(), "no report: {}", saved.facts);
    for vm in &mut vms {
        load(&host, vm, &directory)?;
    }
    waits.process.must_run()
}

fn one_guest_that_cannot_go_keeps_all_of_them() -> anyhow::Result<()> {
    let host = Host::new()?;
    let directory = directory(&host)?;
    let mut vms = guests(&host, 2)?;
    let spec = Spec { ram_file: false, ..Spec::new(Guest::patterns(Mode::Long), 1) };
    vms.push(Vm::boot(&host, spec)?);
    for verb in [&["check", "--mode", "reboot"][..], &["reboot"]] {
        let refused = all(&host, verb, &directory)?.must_be(3)?;
        let of = &refused.facts["not-saved"];
        ensure!(names(of) == [vms[2].name.as_str()], "it cannot go: {}", refused.facts);
        ensure!(of[0]["blockers"][0].to_string().contains("pc.ram"), "no reason: {}", refused.facts);
        ensure!(names(&refused.facts["not-begun"]).len() == 2, "the others: {}", refused.facts);
        ensure!(std::fs::read_dir(&directory)?.next().is_none(), "a file was left behind");
        for vm in &vms {
            vm.becomes("running")?;
            vm.goes_on()?;
        }
    }
    // It can where its RAM is copied.
    all(&host, &["reboot", "--copy-ram"], &directory)?.must_be(0)?;
    vms.iter_mut().try_for_each(Vm::ended)
}

fn where_room_ends_the_saved_are_saved_and_the_others_run_on() -> anyhow::Result<()> {
    let host = Host::new()?;
    let directory = directory(&host)?;
    // Room is reserved for one guest at a time, and then given back but for what its state takes: there is some for two.
    mount(Some("none"), &directory, Some("tmpfs"), MsFlags::empty(), Some("size=1250k"))
        .map_err(|error| Skipped(format!("mounting a small tmpfs: {error}")))?;
    let done = room_ends(&host, &directory);
    umount(&directory).context("unmounting the small tmpfs")?;
    done
}

fn room_ends(host: &Host, directory: &Path) -> anyhow::Result<()> {
    let mut vms = guests(host, 4)?;
    vms.sort_by(|one, other| one.name.cmp(&other.name));
    let failed = all(host, &["reboot", "--jobs", "1"], directory)?.must_be(1)?;
    let facts = &failed.facts;
    let [one, two, other, last] = [0, 1, 2, 3].map(|index: usize| vms[index].name.as_str());
    ensure!(names(&facts["saved"]) == [one, two], "saved: {facts}");
    ensure!(names(&facts["not-saved"]) == [other], "not saved: {facts}");
    ensure!(facts["not-saved"][0]["run-state"] == "running", "not running: {facts}");
    ensure!(names(&facts["not-begun"]) == [last], "not begun: {facts}");
    let (saved, others) = vms.split_at_mut(2);
    for vm in others {
        vm.becomes("running")?;
        vm.goes_on()?;
    }
    saved.iter_mut().try_for_each(|vm| load(host, vm, directory))
}
