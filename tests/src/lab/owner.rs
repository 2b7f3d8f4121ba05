//! Runs the two commands inside the lab's host: `cpr-load`, which owns the guest, and `cpr-save`, which hands it over.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use vmm_core::cpr::transfer::message::{Message, State};
use vmm_core::monitor::client::Client;

use super::image::{COMMANDS, GUEST_INITRD, GUEST_KERNEL};
use super::scenario::{Backing, Disk, Guest, Mode, Terminal};
use super::steps::{HandOver, Machine, exit, milliseconds};
use super::{disks, net, vsock};
use crate::harness::proxy::{Action, Proxy};

const NAME: &str = "vm1";
const RUNTIME: &str = "/run/cpr";
const LOGS: &str = "/run/log";
const WITHIN: Duration = Duration::from_secs(30);

/// The process that owns the guest, whichever it is by now.
pub struct Owner {
    process: Child,
    started: u32,
}

impl Owner {
    /// Boots the guest cold.
    pub fn boot(guest: &Guest) -> Result<Self> {
        fs::create_dir_all(RUNTIME)?;
        fs::create_dir_all(LOGS)?;
        let backing = match guest.backing {
            Backing::Memfd => "memfd".to_owned(),
            Backing::File => format!("file,path=/dev/shm/{NAME}"),
        };
        let mut arguments = vec![
            "boot".to_owned(),
            format!("--name={NAME}"),
            format!("--cpus={}", guest.cpus),
            format!("--memory=size={},backing={backing}", guest.memory),
            format!("--kernel={GUEST_KERNEL}"),
            format!("--initrd={GUEST_INITRD}"),
            format!("--cmdline={}", guest.cmdline()),
            match guest.console {
                Terminal::Serial => format!("--serial=unix:{}", serial().display()),
                Terminal::Virtio => format!("--device=virtio-serial-pci,console=unix:{}", serial().display()),
            },
        ];
        let disk = |(index, disk): (usize, &Disk)| {
            let direct = if disk.delay_ms > 0 { ",direct=on" } else { "" };
            format!("--device=virtio-blk-pci,path={}{direct}", disks::path(index, disk).display())
        };
        arguments.extend(guest.disks.iter().enumerate().map(disk));
        arguments.extend(guest.net.iter().map(|net| {
            let vhost = if net.vhost { ",vhost=on" } else { "" };
            let mac = net::MAC.map(|byte| format!("{byte:02x}")).join(":");
            format!("--device=virtio-net-pci,tap={},mac={mac},queues={}{vhost}", net::TAP, net.queues)
        }));
        if guest.vsock {
            arguments.push(format!("--device=vhost-vsock-pci,guest-cid={}", vsock::GUEST));
        }
        arguments.extend(guest.devices.iter().map(|device| format!("--device={device}")));
        let process = load(&arguments, 0)?;
        Ok(Self { process, started: 1 })
    }

    /// Prints what each process said.
    pub fn show_logs(&self) {
        for index in 0..self.started {
            let path = log(index);
            println!("--- {}", path.display());
            print!("{}", fs::read_to_string(path).unwrap_or_default());
        }
        println!("---");
    }

    fn resume(&mut self, from: &str) -> Result<Child> {
        self.started += 1;
        load(&["resume".to_owned(), format!("--from={from}")], self.started - 1)
    }

    /// Waits for the process that gave its guest away to end, and puts the next owner in its place.
    fn replace(&mut self, next: Child) -> Result<()> {
        let mut source = std::mem::replace(&mut self.process, next);
        match exit(&mut source, WITHIN)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("the source gave its guest away and ended with {status}"),
            None => {
                source.kill()?;
                bail!("the source gave its guest away and did not end within {WITHIN:?}")
            }
        }
    }

    fn transfer(&mut self) -> Result<Value> {
        let incoming = format!("{RUNTIME}/{NAME}.in");
        let target = self.resume(&format!("unix:{incoming}"))?;
        until("the target to listen", || Ok(Path::new(&incoming).exists().then_some(())))?;
        let report = save(&["transfer", NAME, "--to", &format!("unix:{incoming}")])?;
        self.replace(target)?;
        Ok(report)
    }

    fn reboot(&mut self) -> Result<Value> {
        let file = format!("file:{RUNTIME}/{NAME}.state");
        save(&["reboot", NAME, "--to", &file])?;
        let source_ended = exit(&mut self.process, WITHIN)?;
        if source_ended.is_none_or(|status| !status.success()) {
            bail!("the source saved its guest and then: {source_ended:?}");
        }
        self.process = self.resume(&file)?;
        let loaded = |status: &Value| ["running", "paused"].iter().any(|state| status["run-state"] == *state);
        until("the guest to be loaded", || Ok(status().ok().filter(loaded)))
    }
}

impl Machine for Owner {
    fn hand_over(&mut self, mode: Mode) -> Result<HandOver> {
        let started = Instant::now();
        let report = match mode {
            Mode::Transfer => self.transfer()?,
            Mode::Exec => save(&["exec", NAME])?,
            Mode::Reboot => self.reboot()?,
        };
        if let Some(status) = self.process.try_wait()? {
            bail!("the guest's owner after {mode} ended with {status}");
        }
        let total = milliseconds(started.elapsed());
        Ok(HandOver { downtime: downtime(&report), total })
    }

    fn balloon(&mut self, bytes: u64) -> Result<()> {
        let monitor = Path::new(RUNTIME).join(format!("{NAME}.sock"));
        let mut client = Client::connect_within(&monitor, WITHIN)?;
        client.execute("balloon", &json!({"value": bytes}))?;
        let mut kept = 0;
        let reached = until("the guest to keep as much as it is asked to", || {
            kept = client.execute("query-balloon", &json!({}))?["actual"].as_u64().unwrap_or_default();
            Ok((kept == bytes).then_some(()))
        });
        reached.with_context(|| format!("it keeps {kept} bytes and not {bytes}"))
    }

    fn roll_back(&mut self) -> Result<HandOver> {
        let incoming = format!("{RUNTIME}/{NAME}.lost");
        let mut target = self.resume(&format!("unix:{incoming}"))?;
        until("the target to listen", || Ok(Path::new(&incoming).exists().then_some(())))?;
        let between = Path::new(RUNTIME).join(format!("{NAME}.between"));
        let proxy = Proxy::start(between.clone(), Path::new(&incoming), |crossing| {
            if crossing.frame.kind == State::KIND { Action::Close } else { Action::Pass }
        })?;
        let started = Instant::now();
        let done = save(&["transfer", NAME, "--to", &format!("unix:{}", between.display())]);
        let total = milliseconds(started.elapsed());
        drop(proxy);
        fs::remove_file(between)?;
        match (done, exit(&mut target, WITHIN)?) {
            (Err(_), Some(ended)) if !ended.success() => Ok(HandOver { downtime: None, total }),
            (done, ended) => bail!("a transfer that lost its state said {done:?}, and its target {ended:?}"),
        }
    }

    fn stop(&mut self) -> Result<()> {
        save(&["stop", NAME]).map(drop)
    }

    fn cont(&mut self) -> Result<()> {
        save(&["cont", NAME]).map(drop)
    }

    fn is_paused(&self) -> Result<bool> {
        Ok(status()?["run-state"] == "paused")
    }

    fn ended(&mut self, within: Duration) -> Result<bool> {
        match exit(&mut self.process, within)? {
            Some(status) if !status.success() => bail!("the guest's owner ended with {status}"),
            status => Ok(status.is_some()),
        }
    }

    fn descriptors(&self) -> Option<u64> {
        Some(fs::read_dir(format!("/proc/{}/fd", self.process.id())).ok()?.count() as u64)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The guest's serial socket.
pub fn serial() -> PathBuf {
    Path::new(RUNTIME).join(format!("{NAME}.serial"))
}

fn log(index: u32) -> PathBuf {
    Path::new(LOGS).join(format!("cpr-load-{index}.log"))
}

fn load(arguments: &[String], index: u32) -> Result<Child> {
    let log = File::create(log(index))?;
    Command::new(format!("{COMMANDS}/cpr-load"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("starting cpr-load")
}

/// Runs `cpr-save --json` to its end, and returns the last thing that it said.
fn save(arguments: &[&str]) -> Result<Value> {
    let command = arguments.join(" ");
    let output = Command::new(format!("{COMMANDS}/cpr-save"))
        .args(arguments)
        .arg("--json")
        .stdin(Stdio::null())
        .output()
        .context("starting cpr-save")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let last = said.lines().last().unwrap_or_default();
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("cpr-save {command} ended with {}: {last} {}", output.status, complaint.trim());
    }
    serde_json::from_str(last).with_context(|| format!("cpr-save {command} said {last:?}"))
}

fn status() -> Result<Value> {
    save(&["status", NAME])
}

/// The downtime that a report of `cpr-save` has, in milliseconds.
fn downtime(said: &Value) -> Option<f64> {
    said["report"]["downtime-us"].as_f64().map(|microseconds| microseconds / 1e3)
}

fn until<T>(what: &str, mut check: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + WITHIN;
    loop {
        if let Some(value) = check()? {
            return Ok(value);
        }
        if Instant::now() > deadline {
            bail!("waited {WITHIN:?} for {what}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
