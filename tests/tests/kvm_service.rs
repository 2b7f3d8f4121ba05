//! What a service manager is told.

use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use cpr_tests::guests::{Guest, Mode};
use cpr_tests::harness::host::Host;
use cpr_tests::harness::process::Process;
use cpr_tests::harness::runner::Tier;
use cpr_tests::harness::vm::{Spec, Vm};

cpr_tests::tests!(
    Tier::Kvm,
    the_service_manager_hears_of_the_guest_of_the_main_thread_and_of_the_end,
    the_service_manager_hears_where_an_exec_that_went_wrong_left_the_guest,
);

/// For anything to be told.
const DEADLINE: Duration = Duration::from_mins(1);

/// The service manager's socket.
struct Manager(UnixDatagram);

impl Manager {
    fn new(host: &Host) -> anyhow::Result<(Self, std::path::PathBuf)> {
        let path = host.fresh("notify");
        let socket = UnixDatagram::bind(&path).context("making the service manager's socket")?;
        socket.set_read_timeout(Some(DEADLINE))?;
        Ok((Self(socket), path))
    }

    /// Waits for a message with all of these lines.
    fn hears(&self, lines: &[&str]) -> anyhow::Result<()> {
        let deadline = Instant::now() + DEADLINE;
        let mut said = Vec::new();
        let mut buffer = [0; 4096];
        while Instant::now() < deadline {
            let length = self.0.recv(&mut buffer).with_context(|| format!("waiting for {lines:?}"))?;
            let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if lines.iter().all(|line| message.lines().any(|told| told == *line)) {
                return Ok(());
            }
            said.push(message);
        }
        bail!("the service manager never heard {lines:?}, but {said:?}")
    }

    /// Waits for another main process to be named than this one; gives it.
    fn hears_of_another_than(&self, pid: i32) -> anyhow::Result<i32> {
        let deadline = Instant::now() + DEADLINE;
        let mut buffer = [0; 4096];
        while Instant::now() < deadline {
            let length = self.0.recv(&mut buffer).context("waiting for another main process")?;
            let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
            let named = message.lines().find_map(|line| line.strip_prefix("MAINPID=")?.parse().ok());
            match named {
                Some(other) if other != pid => return Ok(other),
                _ => {}
            }
        }
        bail!("the service manager never heard of another main process than {pid}")
    }

    fn hears_of(&self, vm: &Vm<'_>, pid: i32) -> anyhow::Result<()> {
        let status = format!("STATUS=guest '{}' is running", vm.name);
        self.hears(&[&format!("MAINPID={pid}"), "READY=1", &status])
    }
}

/// A guest that a service manager has had loaded from a file.
fn served<'h>(host: &'h Host, socket: &std::path::Path) -> anyhow::Result<Vm<'h>> {
    let mut vm = Vm::boot(host, Spec::new(Guest::patterns(Mode::Long), 1))?;
    let from = format!("file:{}", host.fresh("state").display());
    vm.save("reboot", &["--to", &from])?.must_be(0)?;
    vm.ended()?;
    let mut command: Command = host.command("cpr-load")?;
    command.env("NOTIFY_SOCKET", socket).env("WATCHDOG_USEC", "200000");
    vm.process = Process::start("served", command.args(["resume", "--from", &from]), host.path())?;
    Ok(vm)
}

fn the_service_manager_hears_of_the_guest_of_the_main_thread_and_of_the_end() -> anyhow::Result<()> {
    let host = Host::new()?;
    let (manager, socket) = Manager::new(&host)?;
    let mut vm = served(&host, &socket)?;
    let pid = vm.process.pid();
    manager.hears_of(&vm, pid)?;
    for _ in 0..3 {
        manager.hears(&["WATCHDOG=1"])?;
    }
    vm.exec()?;
    manager.hears_of_another_than(pid)?;
    manager.hears_of(&vm, pid)?;
    manager.hears(&["WATCHDOG=1"])?;
    vm.save("quit", &[])?.must_be(0)?;
    manager.hears(&["STOPPING=1"])
}

fn the_service_manager_hears_where_an_exec_that_went_wrong_left_the_guest() -> anyhow::Result<()> {
    let host = Host::new()?;
    let (manager, socket) = Manager::new(&host)?;
    let vm = served(&host, &socket)?;
    let source = vm.process.pid();
    manager.hears_of(&vm, source)?;
    let turncoat = host.turncoat("exit 1")?;
    let pid = vm.save("exec", &["--timeout", "2", "--", &turncoat])?.stopover()?;
    let named = manager.hears_of_another_than(source)?;
    ensure!(named == pid, "the guest is in {pid}, and the service manager was told of {named} first");
    manager.hears_of(&vm, pid)?;
    manager.hears(&["WATCHDOG=1"])?;
    vm.save("quit", &[])?.must_be(0)?;
    manager.hears(&["STOPPING=1"])
}
