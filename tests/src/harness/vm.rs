//! A guest of `cpr-load`, through all its processes.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use vmm_core::cpr::Mode;
use vmm_core::monitor::client::Client;

use super::host::{Host, Outcome, Save, Target};
use super::process::Process;
use super::ram::Ram;
use crate::guests::{Guest, Work};

/// For a process to end, a monitor to answer, a run state to come.
const DEADLINE: Duration = Duration::from_mins(1);

/// What a guest is made of.
#[derive(Debug, Clone)]
pub struct Spec {
    /// What it runs.
    pub guest: Guest,
    /// vCPUs.
    pub cpus: u64,
    /// RAM, in MiB.
    pub memory_mib: u64,
    /// Whether its RAM is a file, so that it outlives every process.
    pub ram_file: bool,
    /// Its serial port.
    pub serial: Option<String>,
    /// Whether it is booted as a kernel, and not as a firmware.
    pub kernel: bool,
    /// Its devices, as `cpr-load boot --device` takes them.
    pub devices: Vec<String>,
}

impl Spec {
    /// A guest with 32 MiB of RAM in a file.
    pub fn new(guest: Guest, cpus: u64) -> Self {
        Self { guest, cpus, memory_mib: 32, ram_file: true, serial: None, kernel: false, devices: Vec::new() }
    }
}

/// A guest, in whatever process it is.
#[derive(Debug)]
pub struct Vm<'h> {
    host: &'h Host,
    spec: Spec,
    ram_file: Option<PathBuf>,
    /// Its name.
    pub name: String,
    /// The process that has it.
    pub process: Process,
    /// Its RAM.
    pub ram: Arc<Ram>,
}

impl<'h> Vm<'h> {
    /// Boots a guest and waits until it does what it is to do.
    pub fn boot(host: &'h Host, spec: Spec) -> anyhow::Result<Self> {
        let rom = host.fresh("rom");
        let (flag, image) =
            if spec.kernel { ("--kernel", spec.guest.kernel()) } else { ("--firmware", spec.guest.image()) };
        std::fs::write(&rom, image).context("writing what it boots")?;
        let name = rom.file_stem().map_or_else(String::new, |n| format!("vm{}", n.display()));
        let ram_file = spec.ram_file.then(|| host.fresh("ram"));
        let backing = match &ram_file {
            Some(path) => format!("file,path={}", path.display()),
            None => "memfd".into(),
        };
        let mut arguments = vec!["boot".into(), "--name".into(), name.clone()];
        arguments.extend(["--cpus".into(), spec.cpus.to_string(), flag.into()]);
        arguments.extend([rom.display().to_string(), "--memory".into()]);
        arguments.push(format!("size={}M,backing={backing}", spec.memory_mib));
        if let Some(serial) = &spec.serial {
            arguments.extend(["--serial".into(), serial.clone()]);
        }
        arguments.extend(spec.devices.iter().map(|device| format!("--device={device}")));
        let mut process = host.load(arguments)?;
        let ram = Arc::new(find_ram(&mut process, ram_file.as_ref(), spec.memory_mib << 20)?);
        let vm = Self { host, spec, ram_file, name, process, ram };
        vm.goes_on().with_context(|| format!("{} printed: {}", vm.process.name(), vm.process.log()))?;
        Ok(vm)
    }

    /// Waits until it goes on: every vCPU is up, counts where it is one that counts, and finds nothing wrong.
    pub fn goes_on(&self) -> anyhow::Result<()> {
        if self.spec.guest.work != Work::Halted {
            self.ram.wait_for_heartbeat(self.spec.cpus)?;
        }
        if self.spec.guest.work == Work::Patterns {
            self.ram.wait_for("its count of sweeps", self.spec.cpus, 2, Ram::sweeps)?;
            self.ram.wait_for("its count of ticks", self.spec.cpus, 2, Ram::ticks)?;
        }
        self.ram.check(self.spec.cpus)
    }

    /// The file that is its RAM, if its RAM is a file.
    pub fn ram_file(&self) -> Option<PathBuf> {
        self.ram_file.clone()
    }

    /// Fails unless it stands still.
    pub fn stands_still(&self) -> anyhow::Result<()> {
        self.ram.stands_still(self.spec.cpus, Duration::from_millis(100))
    }

    /// Whether it counts within a while.
    pub fn counts(&self) -> anyhow::Result<bool> {
        let (before, begin) = (self.ram.count(0), Instant::now());
        while begin.elapsed() < Duration::from_millis(500) {
            self.ram.check(self.spec.cpus)?;
            if self.ram.count(0) > before + 100 {
                return Ok(true);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(false)
    }

    /// A new client of its monitor.
    pub fn monitor(&self) -> anyhow::Result<Client> {
        let socket = self.host.path().join("cpr").join(format!("{}.sock", self.name));
        Ok(Client::connect_within(&socket, DEADLINE)?)
    }

    /// Asks its monitor.
    pub fn ask(&self, command: &str) -> anyhow::Result<Value> {
        Ok(self.monitor()?.execute(command, &json!({}))?)
    }

    /// Its run state.
    pub fn run_state(&self) -> anyhow::Result<String> {
        let status = self.ask("query-status")?;
        Ok(status["status"].as_str().context("query-status has no status")?.to_owned())
    }

    /// Waits until it is in a run state.
    pub fn becomes(&self, state: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let found = self.run_state()?;
            if found == state {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the guest is {found}, and did not become {state}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Starts `cpr-save VERB VM …`.
    pub fn start(&self, verb: &str, more: &[&str]) -> anyhow::Result<Save> {
        let mut arguments = vec![verb, &self.name];
        arguments.extend(more);
        self.host.start_save(&arguments)
    }

    /// Runs `cpr-save VERB VM …`.
    pub fn save(&self, verb: &str, more: &[&str]) -> anyhow::Result<Outcome> {
        self.start(verb, more)?.finish()
    }

    /// Runs `cpr-save transfer` to a socket.
    pub fn transfer_to(&self, socket: &std::path::Path) -> anyhow::Result<Outcome> {
        self.save("transfer", &["--to", &format!("unix:{}", socket.display())])
    }

    /// Hands it over to a new process.
    pub fn transfer(&mut self) -> anyhow::Result<Outcome> {
        let target = self.host.target()?;
        self.transfer_into(target)
    }

    /// Hands it over to a process that waits for it.
    pub fn transfer_into(&mut self, target: Target) -> anyhow::Result<Outcome> {
        let outcome = self.transfer_to(&target.socket)?.must_be(0).with_context(|| {
            format!("the source printed: {}\nthe target: {}", self.process.log(), target.process.log())
        })?;
        self.ended()?;
        self.process = target.process;
        Ok(outcome)
    }

    /// Replaces its process's program.
    pub fn exec(&mut self) -> anyhow::Result<Outcome> {
        let outcome = self.save("exec", &[])?.must_be(0);
        outcome.with_context(|| format!("{} printed: {}", self.process.name(), self.process.log()))
    }

    /// Saves it to a file and loads it in a new process.
    pub fn reboot(&mut self) -> anyhow::Result<Outcome> {
        let address = format!("file:{}", self.host.fresh("state").display());
        let outcome = self.save("reboot", &["--to", &address])?.must_be(0)?;
        self.ended()?;
        self.process = self.host.load(["resume", "--from", &address])?;
        Ok(outcome)
    }

    /// Saves it to a file with its RAM.
    pub fn save_with_ram(&mut self) -> anyhow::Result<PathBuf> {
        let file = self.host.fresh("state");
        self.save("reboot", &["--copy-ram", "--to", &format!("file:{}", file.display())])?.must_be(0)?;
        self.ended()?;
        Ok(file)
    }

    /// Loads it from a file with its RAM, in a new process.
    pub fn load_with_ram(&mut self, file: &std::path::Path) -> anyhow::Result<()> {
        self.process = self.host.load(["resume", "--from", &format!("file:{}", file.display())])?;
        self.find_ram()
    }

    /// Maps its RAM where that was made anew.
    pub fn find_ram(&mut self) -> anyhow::Result<()> {
        self.ram = Arc::new(find_ram(&mut self.process, self.ram_file.as_ref(), self.spec.memory_mib << 20)?);
        Ok(())
    }

    /// Hands it over in a mode.
    pub fn handover(&mut self, mode: Mode) -> anyhow::Result<Outcome> {
        match mode {
            Mode::CprTransfer => self.transfer(),
            Mode::CprExec => self.exec(),
            Mode::CprReboot => self.reboot(),
        }
    }

    /// Waits until the process that gave it away has ended by itself.
    pub fn ended(&mut self) -> anyhow::Result<()> {
        let status = self.process.wait(DEADLINE).context("after the guest was handed over")?;
        ensure!(status.success(), "the source ended with {status}; it printed: {}", self.process.log());
        Ok(())
    }
}

/// The guest's RAM, once the process has made it.
fn find_ram(process: &mut Process, file: Option<&PathBuf>, size: u64) -> anyhow::Result<Ram> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let found = match file {
            Some(path) => File::options()
                .read(true)
                .write(true)
                .open(path)
                .context("opening the file that is RAM")
                .and_then(Ram::map),
            None => process.memfd("pc.ram"),
        };
        match found {
            Ok(ram) if ram.len() >= size => return Ok(ram),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("{} printed: {}", process.name(), process.log())));
            }
            _ => process.must_run()?,
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
