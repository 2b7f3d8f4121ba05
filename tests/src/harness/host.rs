//! What stands for a host in a test: a directory with sockets, state and RAM files, and the two commands run in it.

use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::process::Process;

/// The longest that a command may take.
const COMMAND: Duration = Duration::from_mins(1);

/// A directory on a RAM disk that everything in a test lives in.
#[derive(Debug)]
pub struct Host {
    directory: TempDir,
    made: Cell<u32>,
}

impl Host {
    /// A host without guests.
    pub fn new() -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("cpr-").tempdir_in("/dev/shm");
        Ok(Self { directory: directory.context("making a directory in /dev/shm")?, made: Cell::new(0) })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A path in it that was not given out before.
    pub fn fresh(&self, what: &str) -> PathBuf {
        self.made.set(self.made.get() + 1);
        self.path().join(format!("{}.{what}", self.made.get()))
    }

    /// One of the product's commands, to be run on this host.
    pub fn command(&self, name: &str) -> anyhow::Result<Command> {
        let mut command = Command::new(binary(name)?);
        command.env("XDG_RUNTIME_DIR", self.path()).current_dir(self.path());
        Ok(command)
    }

    /// A shell script on this host; gives its path.
    pub fn script(&self, text: &str) -> anyhow::Result<String> {
        let path = self.fresh("sh");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).context("writing a script")?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).context("making it executable")?;
        Ok(path.display().to_string())
    }

    /// A command that answers the probe like any other, and does something else once it is executed.
    pub fn turncoat(&self, does: &str) -> anyhow::Result<String> {
        let load = binary("cpr-load")?;
        let load = load.display();
        self.script(&format!("case \"$*\" in *exec:*) {does};; esac\nexec {load} \"$@\""))
    }

    /// Starts `cpr-load` with arguments.
    pub fn load<S: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> anyhow::Result<Process> {
        self.made.set(self.made.get() + 1);
        let name = format!("cpr-load-{}", self.made.get());
        Process::start(&name, self.command("cpr-load")?.args(arguments), self.path())
    }

    /// Starts `cpr-save --json` with arguments.
    pub fn start_save(&self, arguments: &[&str]) -> anyhow::Result<Save> {
        self.start_save_of(self.command("cpr-save")?.arg("--json").args(arguments))
    }

    fn start_save_of(&self, command: &mut Command) -> anyhow::Result<Save> {
        let (out, log) = (self.fresh("cpr-save.out"), self.fresh("cpr-save.log"));
        command.stdout(File::create(&out).context("making a file for cpr-save's output")?);
        let file = File::create(&log).context("making a log for cpr-save")?;
        Ok(Save { process: Process::start_logging_to("cpr-save", command, log, file)?, out })
    }

    /// Runs `cpr-save --json` with arguments to its end.
    pub fn save(&self, arguments: &[&str]) -> anyhow::Result<Outcome> {
        self.start_save(arguments)?.finish()
    }

    /// Starts a `cpr-load` that waits for a guest on a socket.
    pub fn target(&self) -> anyhow::Result<Target> {
        let socket = self.fresh("in");
        let mut process = self.load(["resume", "--from", &format!("unix:{}", socket.display())])?;
        let deadline = Instant::now() + COMMAND;
        while !socket.exists() {
            process.must_run()?;
            ensure!(Instant::now() < deadline, "the target made no socket; it printed: {}", process.log());
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(Target { process, socket })
    }
}

/// A `cpr-load` that waits for a guest.
#[derive(Debug)]
pub struct Target {
    /// The process.
    pub process: Process,
    /// Where it listens.
    pub socket: PathBuf,
}

/// A `cpr-save` under way.
#[derive(Debug)]
pub struct Save {
    /// The process.
    pub process: Process,
    out: PathBuf,
}

impl Save {
    /// Waits for its end.
    pub fn finish(mut self) -> anyhow::Result<Outcome> {
        let status = self.process.wait(COMMAND)?;
        let code = status.code().with_context(|| format!("cpr-save ended by a signal ({status})"))?;
        let out = std::fs::read_to_string(&self.out).context("reading cpr-save's output")?;
        let facts =
            out.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or(Value::Null);
        Ok(Outcome { code, facts, log: self.process.log() })
    }
}

/// How a `cpr-save` ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Its exit code.
    pub code: i32,
    /// The last JSON object that it printed.
    pub facts: Value,
    /// What it wrote to standard error.
    pub log: String,
}

impl Outcome {
    /// The downtime that it reports.
    pub fn downtime(&self) -> Option<Duration> {
        self.facts["report"]["downtime-us"].as_u64().map(Duration::from_micros)
    }

    /// The process that the guest is said to run on in after an exec that went wrong, which must be that.
    pub fn stopover(self) -> anyhow::Result<i32> {
        const WORDS: &str = "the guest runs on in process ";
        let this = self.must_say(1, WORDS)?;
        let said = format!("{} {}", this.facts, this.log);
        let pid = said.split(WORDS).nth(1).and_then(|rest| rest.split([' ', ',', '"']).next());
        pid.and_then(|pid| pid.parse().ok()).with_context(|| format!("no process is named: {said}"))
    }

    /// Fails unless it ended with this code.
    pub fn must_be(self, code: i32) -> anyhow::Result<Self> {
        ensure!(
            self.code == code,
            "cpr-save ended with {}, expected {code}: {} {}",
            self.code,
            self.facts,
            self.log
        );
        Ok(self)
    }

    /// Fails unless it ended with this code, and said this on the way.
    pub fn must_say(self, code: i32, what: &str) -> anyhow::Result<Self> {
        let this = self.must_be(code)?;
        let said = format!("{} {}", this.facts, this.log);
        ensure!(said.contains(what), "cpr-save did not say '{what}', but: {said}");
        Ok(this)
    }
}

/// Where a command of this workspace was built: what `CPR_LOAD` or `CPR_SAVE` names, or beside this program.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let variable = name.to_uppercase().replace('-', "_");
    let path = if let Some(path) = std::env::var_os(&variable) {
        PathBuf::from(path)
    } else {
        let this = std::env::current_exe().context("finding this program")?;
        let directory = this.ancestors().skip(1).find(|directory| !directory.ends_with("deps"));
        directory.context("this program is in no directory")?.join(name)
    };
    ensure!(
        path.is_file(),
        "{} is not there: build it (cargo build -p {name}), or say where it is with {variable}",
        path.display()
    );
    Ok(path)
}
