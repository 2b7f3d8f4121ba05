//! Many small guests on one host of the lab's: bare metal, and with little to do, so that they share a processor.
//!
//! 1. Each is started as its unit would be (`scripts/systemd`): the same words boot it and load it, and it says itself when it is there.
//! 2. It counts in its RAM, which is written full from outside: whoever maps it sees whether it went on, and whether that is as it was.

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use vmm_core::config::ByteSize;
use vmm_core::cpr::report::PhaseTime;
use vmm_core::monitor::client::Client;

use super::commands::{WITHIN, downtime, phases, save, status, until_within};
use super::image::COMMANDS;
use super::kexec::KEPT;
use super::paths::{LOGS, RUNTIME};
use super::scenario;
use crate::guests::{Guest, Mode, Work};
use crate::harness::process::Process;
use crate::harness::ram::Ram;

/// How long all of them may take to be there, or to be gone: many share one processor, which is emulated.
const ALL_WITHIN: Duration = Duration::from_mins(2);
/// Where the pattern begins in a guest's RAM. What is below is its own.
const PATTERN: u64 = 1 << 20;
const PAGE: usize = 4096;

/// The guests, in the order of their numbers.
pub struct Herd {
    guests: Vec<Process>,
    firmware: PathBuf,
    memory: ByteSize,
    /// A message for each guest that is there.
    ready: Receiver<()>,
}

impl Herd {
    /// None yet, but what is needed for some.
    pub fn new(guest: &scenario::Guest) -> Result<Self> {
        let firmware = Guest::new(Work::Rest, Mode::Long).write_to(Path::new("/run"));
        let memory = guest.memory.parse().ok().with_context(|| format!("{:?} is no size", guest.memory))?;
        let (firmware, ready) = (firmware.context("writing the guests' firmware")?, listen()?);
        Ok(Self { guests: Vec::new(), firmware, memory, ready })
    }

    /// Boots more of them, until there are so many, and waits until they count.
    pub fn grow(&mut self, to: usize) -> Result<()> {
        let there = self.guests.len();
        self.start(to)?;
        for index in there..to {
            let ram = self.ram(index)?;
            let up = || Ok((ram.online() == 1).then_some(()));
            until_within(ALL_WITHIN, &format!("{} to come up", name(index)), up)?;
            for page in pattern(&ram) {
                ram.u64(page).store(word(index, page), Ordering::Relaxed);
            }
        }
        self.check(&vec![0; to])
    }

    /// Starts more of them at once, until there are so many, and waits until all are there.
    pub fn start(&mut self, to: usize) -> Result<()> {
        let first = self.guests.len();
        for index in first..to {
            let name = name(index);
            let mut command = Command::new(format!("{COMMANDS}/cpr-load"));
            command.args(["start", "--name", &name, "--saved", &format!("dir:{KEPT}"), "--cpus=1"]);
            command.arg(format!("--memory=size={},backing=memfd", self.memory.0));
            command.arg("--firmware").arg(&self.firmware).env("NOTIFY_SOCKET", socket());
            self.guests.push(Process::start(&name, &mut command, Path::new(LOGS))?);
        }
        let (deadline, mut there) = (Instant::now() + ALL_WITHIN, first);
        while there < to {
            match self.ready.recv_timeout(Duration::from_secs(1)) {
                Ok(()) => there += 1,
                Err(RecvTimeoutError::Timeout) => {
                    self.guests.iter_mut().try_for_each(Process::must_run)?;
                    ensure!(Instant::now() < deadline, "{there} of {to} guests were there in {ALL_WITHIN:?}");
                }
                Err(RecvTimeoutError::Disconnected) => bail!("nobody listens for guests any more"),
            }
        }
        Ok(())
    }

    /// How far each has counted.
    pub fn counts(&self) -> Result<Vec<u64>> {
        (0..self.guests.len()).map(|index| Ok(self.ram(index)?.count(0))).collect()
    }

    /// Fails unless each has its RAM, counts on from where it was, and is in one process.
    pub fn check(&mut self, counts: &[u64]) -> Result<()> {
        for (index, before) in counts.iter().enumerate() {
            let (name, ram) = (name(index), self.ram(index)?);
            let found = ram.count(0);
            ensure!(found >= *before, "{name} had counted to {before}, and counts from {found}");
            let on = || Ok((ram.count(0) > before + 1).then_some(()));
            until_within(WITHIN, &format!("{name} to count on from {before}"), on)?;
            ram.check(1)?;
            for page in pattern(&ram) {
                let (found, expected) = (ram.u64(page).load(Ordering::Relaxed), word(index, page));
                ensure!(found == expected, "{name} has {found:#x} at {page:#x}; expected {expected:#x}");
            }
        }
        // Keepers end when their guests have been loaded.
        let alone = || Ok((processes()? == counts.len()).then_some(()));
        until_within(WITHIN, "each guest to be in one process", alone)?;
        self.guests.iter_mut().try_for_each(Process::must_run)
    }

    /// Saves all by one command, for the next kernel, and waits until their processes have ended; gives the steps reported.
    pub fn save(&mut self) -> Result<Vec<PhaseTime>> {
        let said = save(&["reboot", "--all", "--kexec", "--to", "luo:"])?;
        let told = said["guests"].as_array().map_or(&[][..], Vec::as_slice);
        ensure!(told.len() == self.guests.len(), "{} of {} guests were saved", told.len(), self.guests.len());
        for mut process in self.guests.drain(..) {
            let status = process.wait(ALL_WITHIN)?;
            ensure!(status.success(), "{} ended with {status}: {}", process.name(), process.log());
        }
        all_phases(told)
    }

    /// What they reported of being loaded: the steps, and how long each stood, in milliseconds.
    pub fn loads(&self) -> Result<(Vec<PhaseTime>, Vec<f64>)> {
        let said = (0..self.guests.len()).map(|index| status(&name(index))).collect::<Result<Vec<_>>>()?;
        let stood = said.iter().filter_map(downtime).collect();
        Ok((all_phases(&said)?, stood))
    }

    /// Ends all.
    pub fn end(&mut self) -> Result<()> {
        for (index, process) in self.guests.iter_mut().enumerate() {
            let monitor = Path::new(RUNTIME).join(format!("{}.sock", name(index)));
            Client::connect_within(&monitor, WITHIN)?.execute("quit", &json!({}))?;
            let status = process.wait(WITHIN)?;
            ensure!(status.success(), "{} ended with {status}: {}", process.name(), process.log());
        }
        Ok(())
    }

    fn ram(&self, index: usize) -> Result<Ram> {
        self.guests[index].memfd_of(self.memory.0)
    }
}

fn name(index: usize) -> String {
    format!("vm{}", index + 1)
}

/// A word in each page of a guest's RAM that it does not use.
fn pattern(ram: &Ram) -> impl Iterator<Item = u64> + use<> {
    (PATTERN..ram.len()).step_by(PAGE)
}

/// What the word is there.
fn word(index: usize, page: u64) -> u64 {
    page | (index as u64 + 1) << 32
}

fn all_phases(said: &[Value]) -> Result<Vec<PhaseTime>> {
    Ok(said.iter().map(phases).collect::<Result<Vec<_>>>()?.concat())
}

fn socket() -> PathBuf {
    Path::new("/run").join("ready")
}

/// Listens for guests as a service manager does; all that is said is taken at once, so that nobody waits to say it.
fn listen() -> Result<Receiver<()>> {
    let manager = UnixDatagram::bind(socket()).context("listening for guests that are there")?;
    let (sender, ready) = mpsc::channel();
    thread::spawn(move || {
        let mut said = [0; 4096];
        while let Ok(length) = manager.recv(&mut said) {
            let is_ready = said[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1");
            if is_ready && sender.send(()).is_err() {
                return;
            }
        }
    });
    Ok(ready)
}

/// How many processes there are that have a guest, or keep one.
fn processes() -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir("/proc").context("looking for processes")? {
        match fs::read_link(entry?.path().join("exe")) {
            Ok(program) => count += usize::from(program.ends_with("cpr-load")),
            // No process, a thread of the kernel's, or one that has ended meanwhile.
            Err(error) if [ErrorKind::NotFound, ErrorKind::NotADirectory].contains(&error.kind()) => {}
            Err(error) => return Err(error).context("looking at a process"),
        }
    }
    Ok(count)
}
