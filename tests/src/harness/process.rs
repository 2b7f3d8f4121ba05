//! A process that a test started: it ends with the test, whatever happens.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::ram::Ram;

/// A child process. Killed on drop, and when the thread that started it ends.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command; what it prints goes to `NAME.log` in a directory.
    pub fn start(name: &str, command: &mut Command, directory: &Path) -> anyhow::Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log).context("opening a log")?;
        command.stdout(file.try_clone().context("duplicating a log's descriptor")?);
        Self::start_logging_to(name, command, log, file)
    }

    /// Starts a command whose standard output is set already; its standard error goes to a file.
    pub fn start_logging_to(
        name: &str,
        command: &mut Command,
        log: PathBuf,
        file: File,
    ) -> anyhow::Result<Self> {
        // SAFETY: one system call, which is safe between fork and exec.
        unsafe {
            command.pre_exec(|| {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                Ok(())
            })
        };
        let child = command
            .stdin(Stdio::null())
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {name} ({})", command.get_program().display()))?;
        Ok(Self { name: name.into(), child, log })
    }

    /// Its name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// What it has printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it has printed some words; gives the line that they are in.
    pub fn says(&mut self, words: &str, within: Duration) -> anyhow::Result<String> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(line) = self.log().lines().find(|line| line.contains(words)) {
                return Ok(line.to_owned());
            }
            self.must_run()?;
            ensure!(Instant::now() < deadline, "{} did not say '{words}', but: {}", self.name, self.log());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill(Pid::from_raw(self.pid()), signal).with_context(|| format!("sending {signal} to {}", self.name))
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().context("waiting for a process")? {
                return Ok(status);
            }
            ensure!(
                Instant::now() < deadline,
                "{} did not end in {within:?}; it printed: {}",
                self.name,
                self.log()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Fails if it has ended, with what it printed.
    pub fn must_run(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait().context("looking at a process")? {
            bail!("{} ended ({status}); it printed: {}", self.name, self.log());
        }
        Ok(())
    }

    /// How many descriptors it has open: the least for a while, for that of a client that has just gone may be open still.
    pub fn open_descriptors(&self) -> anyhow::Result<usize> {
        let directory = format!("/proc/{}/fd", self.pid());
        let mut least = usize::MAX;
        for _ in 0..20 {
            let open = std::fs::read_dir(&directory).with_context(|| format!("reading {directory}"))?.count();
            least = least.min(open);
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(least)
    }

    /// Its resident memory that is its own (no shared mapping, such as guest RAM), in bytes.
    pub fn resident_anonymous(&self) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/status", self.pid());
        let status = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        Ok(kib.with_context(|| format!("{path} has no RssAnon"))? * 1024)
    }

    /// Maps the memfd that it has open under a name.
    pub fn memfd(&self, name: &str) -> anyhow::Result<Ram> {
        let wanted = format!("/memfd:{name} (deleted)");
        self.find_memfd(&format!("called {name}"), |target, _| target == wanted)
    }

    /// Maps the memfd of this length that it has open. One that came over a kexec has lost its name, and with it that it is a memfd.
    pub fn memfd_of(&self, length: u64) -> anyhow::Result<Ram> {
        self.find_memfd(&format!("of {length} bytes"), |target, path| {
            target.ends_with(" (deleted)") && path.metadata().is_ok_and(|found| found.len() == length)
        })
    }

    fn find_memfd(&self, what: &str, is_it: impl Fn(&str, &Path) -> bool) -> anyhow::Result<Ram> {
        let directory = format!("/proc/{}/fd", self.pid());
        let mut open = Vec::new();
        for entry in std::fs::read_dir(&directory).with_context(|| format!("reading {directory}"))? {
            let path = entry.context("reading a descriptor's entry")?.path();
            let Ok(target) = std::fs::read_link(&path) else { continue };
            if is_it(&target.to_string_lossy(), &path) {
                let file = File::options().read(true).write(true).open(&path);
                return Ram::map(file.with_context(|| format!("opening the memfd {what} of {}", self.name))?);
            }
            open.push(target);
        }
        bail!("{} has no memfd {what} open, but {open:?}", self.name)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
