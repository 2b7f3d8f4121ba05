//! QEMU, as the second opinion and as what is compared with.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use vmm_core::monitor::client::Client;

use super::process::Process;
use super::ram::Ram;

/// The QEMU that is used.
pub const PROGRAM: &str = "qemu-system-x86_64";

/// The version of the QEMU on this machine (`(10, 0)`), if there is one.
pub fn version() -> anyhow::Result<(u32, u32)> {
    let output =
        Command::new(PROGRAM).arg("--version").output().with_context(|| format!("running {PROGRAM}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let number = text.split_whitespace().nth(3).unwrap_or_default();
    let mut parts = number.split('.').map_while(|part| part.parse().ok());
    let version = parts.next().zip(parts.next());
    ensure!(output.status.success(), "{PROGRAM} --version failed");
    version.with_context(|| format!("{PROGRAM} --version says '{}'", text.trim()))
}

/// What a QEMU guest is made of: a ROM, RAM in a memfd, and nothing that a handover would have to move besides.
#[derive(Debug, Clone)]
pub struct Config {
    /// The ROM image.
    pub rom: PathBuf,
    /// `kvm` or `tcg`.
    pub accelerator: &'static str,
    /// vCPUs.
    pub cpus: u8,
    /// RAM, in MiB.
    pub memory_mib: u64,
}

/// A running QEMU guest.
pub struct Qemu {
    config: Config,
    directory: PathBuf,
    generation: u32,
    /// The process that has the guest.
    pub process: Process,
    monitor: Client,
}

const DEADLINE: Duration = Duration::from_mins(1);

impl Qemu {
    /// Boots a guest; sockets and logs go to a directory.
    pub fn boot(config: Config, directory: &Path) -> anyhow::Result<Self> {
        let process = start(&config, directory, 0, &[])?;
        let monitor = Client::connect_within(&monitor_path(directory, 0), DEADLINE)
            .with_context(|| format!("QEMU printed: {}", process.log()))?;
        Ok(Self { config, directory: directory.into(), generation: 0, process, monitor })
    }

    /// The guest's RAM.
    pub fn ram(&self) -> anyhow::Result<Ram> {
        self.process.memfd("memory-backend-memfd")
    }

    /// The path of a second monitor.
    pub fn second_monitor(&self) -> PathBuf {
        second(&monitor_path(&self.directory, self.generation))
    }

    /// Executes a command.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> anyhow::Result<Value> {
        Ok(self.monitor.execute(command, arguments)?)
    }

    /// Starts the process that will take the guest over, up to where it waits.
    pub fn prepare(&mut self) -> anyhow::Result<Target> {
        let generation = self.generation + 1;
        let channel = |kind: &str| {
            let path = self.directory.join(format!("qemu-{generation}-{kind}.sock"));
            json!({"channel-type": kind, "addr": {"transport": "socket", "type": "unix", "path": path}})
        };
        let (main, cpr) = (channel("main"), channel("cpr"));
        let incoming = ["-incoming", &main.to_string(), "-incoming", &cpr.to_string()];
        let mut process = start(&self.config, &self.directory, generation, &incoming)?;
        let socket = self.directory.join(format!("qemu-{generation}-cpr.sock"));
        let deadline = Instant::now() + DEADLINE;
        while !socket.exists() {
            process.must_run()?;
            ensure!(Instant::now() < deadline, "QEMU's target made no socket; it printed: {}", process.log());
            std::thread::sleep(Duration::from_millis(2));
        }
        // It listens soon after its socket is there.
        std::thread::sleep(Duration::from_millis(20));
        Ok(Target { process, generation, channels: json!([main, cpr]) })
    }

    /// Hands the guest over by `cpr-transfer`, and ends the old process once the new one runs.
    pub fn transfer(&mut self, target: Target) -> anyhow::Result<()> {
        self.execute("migrate-set-parameters", &json!({"mode": "cpr-transfer"}))?;
        self.execute("migrate", &json!({"channels": target.channels}))?;
        let deadline = Instant::now() + DEADLINE;
        loop {
            let answer = self.execute("query-migrate", &json!({}))?;
            match answer["status"].as_str() {
                Some("completed") => break,
                Some("failed" | "cancelled") => anyhow::bail!("QEMU's cpr-transfer failed: {answer}"),
                _ => ensure!(Instant::now() < deadline, "QEMU's cpr-transfer did not end: {answer}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.monitor = Client::connect_within(&monitor_path(&self.directory, target.generation), DEADLINE)?;
        while self.execute("query-status", &json!({}))?["status"] != "running" {
            ensure!(Instant::now() < deadline, "QEMU's target does not run the guest");
            std::thread::sleep(Duration::from_millis(5));
        }
        self.process = target.process;
        self.generation = target.generation;
        Ok(())
    }
}

impl Qemu {
    /// Replaces the process's program by `cpr-exec` (QEMU 10.2), and waits until the guest runs again.
    pub fn exec(&mut self) -> anyhow::Result<()> {
        self.generation += 1;
        let state = self.directory.join(format!("qemu-{}.state", self.generation));
        let uri = format!("file:{}", state.display());
        let mut command = vec![PROGRAM.to_owned()];
        command.extend(arguments(&self.config, &self.directory, self.generation));
        command.extend(["-incoming".into(), uri.clone()]);
        let parameters = json!({"mode": "cpr-exec", "cpr-exec-command": command});
        self.execute("migrate-set-parameters", &parameters)?;
        self.execute("migrate", &json!({"uri": uri}))?;
        let deadline = Instant::now() + DEADLINE;
        self.monitor = Client::connect_within(&monitor_path(&self.directory, self.generation), DEADLINE)?;
        while self.execute("query-status", &json!({}))?["status"] != "running" {
            ensure!(Instant::now() < deadline, "QEMU does not run the guest after its exec");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// A QEMU that waits for a guest.
pub struct Target {
    process: Process,
    generation: u32,
    channels: Value,
}

fn monitor_path(directory: &Path, generation: u32) -> PathBuf {
    directory.join(format!("qemu-{generation}.sock"))
}

fn second(monitor: &Path) -> PathBuf {
    monitor.with_extension("second")
}

fn arguments(config: &Config, directory: &Path, generation: u32) -> Vec<String> {
    let Config { rom, accelerator, cpus, memory_mib } = config;
    let monitor = monitor_path(directory, generation);
    [
        "-nodefaults -display none -cpu max -machine q35,aux-ram-share=on,memory-backend=ram".into(),
        format!("-accel {accelerator} -smp {cpus} -m {memory_mib}M -bios {}", rom.display()),
        format!("-object memory-backend-memfd,id=ram,size={memory_mib}M,share=on"),
        // A QEMU monitor has one client at a time.
        format!("-qmp unix:{},server=on,wait=off", monitor.display()),
        format!("-qmp unix:{},server=on,wait=off", second(&monitor).display()),
    ]
    .iter()
    .flat_map(|words: &String| words.split(' ').map(str::to_owned))
    .collect()
}

fn start(config: &Config, directory: &Path, generation: u32, more: &[&str]) -> anyhow::Result<Process> {
    let mut command = Command::new(PROGRAM);
    command.args(arguments(config, directory, generation)).args(more);
    Process::start(&format!("qemu-{generation}"), &mut command, directory)
}
