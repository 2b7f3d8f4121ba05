//! The process that owns a guest inside the lab's host: it is booted, handed over, tried in vain, and ends.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use vmm_core::monitor::client::Client;

use super::autopsy::Holder;
use super::commands::{WITHIN, downtime, is_in_source, load, phases, refused, save, status, unix, until};
use super::image::{GUEST_INITRD, GUEST_KERNEL};
use super::meeting::Meeting;
use super::paths::{GUESTS, RUNTIME, agent, kept_state_file, log, ram, serial, serial_log, state_file, tty};
use super::scenario::{Backing, Disk, Guest, Mode, Terminal};
use super::steps::{HandOver, Machine, exit, milliseconds};
use super::trouble::Trouble;
use super::{
    aer, assigned, autopsy, disks, faults, kexec, misplaced, net, paths, stale, threads, vfio, vsock,
};

/// The process that owns the guest, whichever it is by now.
pub struct Owner {
    /// The guest's name.
    pub(super) name: &'static str,
    process: Child,
    started: u32,
    /// Whether processes that are started may lock little memory only.
    pub(super) confined: bool,
    /// The first of its devices that is the host's, until it is asked back.
    device: Option<String>,
    /// Where its RAM is, unless in a memfd.
    ram: Option<PathBuf>,
    /// Whether it runs before all of its RAM is read that was in a file.
    lazy: bool,
    /// Whether it is saved to no file, and its RAM is kept by the kernel.
    live_update: bool,
    /// Whether its agent suspends it to be saved.
    suspends: bool,
    /// With whom it does what they do at the same time.
    meeting: Option<Arc<Meeting>>,
}

impl Owner {
    /// Boots a guest cold, with devices of the host's from this one on.
    pub fn boot(
        name: &'static str,
        guest: &Guest,
        first: usize,
        meeting: Option<Arc<Meeting>>,
    ) -> Result<Self> {
        let offset = guest.dax_offset_mib.map_or_else(String::new, |mib| format!(",offset={mib}M"));
        let path =
            ram(name, guest).map_or_else(String::new, |ram| format!(",path={}{offset}", ram.display()));
        let backing = format!("{}{path}", guest.backing);
        let (arguments, given) = arguments(name, guest, first, &backing)?;
        let process = load(name, &arguments, 0, false)?;
        drop(given);
        let mut owner = Self::of(name, guest, process, meeting);
        owner.device = Some(assigned::place(guest, first, 0).to_string());
        Ok(owner)
    }

    /// The first process of a guest's under this kernel.
    fn of(name: &'static str, guest: &Guest, process: Child, meeting: Option<Arc<Meeting>>) -> Self {
        let (live_update, suspends) = (guest.live_update, guest.agent);
        Self {
            name,
            process,
            started: 1,
            confined: false,
            device: None,
            ram: ram(name, guest),
            lazy: guest.lazy,
            live_update,
            suspends,
            meeting,
        }
    }

    /// Loads a guest that was saved under the host's kernel before this one, and can be once.
    pub fn resume_kept(name: &'static str, guest: &Guest, meeting: Option<Arc<Meeting>>) -> Result<Self> {
        let file = kept_state_file(name);
        let from = if guest.live_update {
            stale::refuse_strange(name)?;
            luo(name)
        } else {
            stale::refuse_all(name, &file, guest.backing == Backing::Memfd)?;
            format!("file:{}", file.display())
        };
        let process = load(name, &["resume".to_owned(), format!("--from={from}")], 0, false)?;
        let owner = Self::of(name, guest, process, meeting);
        owner.loaded().inspect_err(|_| owner.show_logs())?;
        if guest.live_update {
            stale::refuse_loaded(name)?;
        } else {
            stale::keep(&file)?;
        }
        if guest.dax_offset_mib.is_some() {
            misplaced::refuse_over(name, guest)?;
        }
        Ok(owner)
    }

    /// Prints what each process said, and what the one that has the guest does: a while apart, so that it shows what does not
    /// go on.
    pub fn show_logs(&self) {
        for _ in 0..2 {
            threads::show(self.process.id());
            std::thread::sleep(Duration::from_secs(1));
        }
        for index in 0..self.started {
            let path = log(self.name, index);
            println!("--- {}", path.display());
            print!("{}", fs::read_to_string(path).unwrap_or_default());
        }
        println!("---");
    }

    /// Saves a guest that fell silent, prints where its vCPUs stand, and loads it again.
    pub fn examine(&mut self) -> Result<()> {
        // Its agent would not answer.
        self.suspends = false;
        let file = state_file(self.name);
        let ram = Holder::find(self.pid(), self.ram.as_deref());
        self.save_to(&file)?;
        if let Err(error) = ram.and_then(|ram| autopsy::print(&file, &ram)) {
            println!("where its vCPUs stand is not known: {error:#}");
        }
        self.load_from(&file).map(drop)
    }

    /// Its monitor.
    pub fn monitor(&self) -> Result<Client> {
        let socket = Path::new(RUNTIME).join(format!("{}.sock", self.name));
        Ok(Client::connect_within(&socket, WITHIN)?)
    }

    /// The process that has the guest.
    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Starts a process that waits for the guest at this socket; gives both, once it listens.
    pub(super) fn target(&mut self, which: &str) -> Result<(Child, PathBuf)> {
        let incoming = paths::meeting(self.name, which);
        let target = self.resume(&unix(&incoming))?;
        until("the target to listen", || Ok(incoming.exists().then_some(())))?;
        Ok((target, incoming))
    }

    /// Takes the next owner in the place of one that must have been killed.
    pub(super) fn inherit(&mut self, next: Child) -> Result<()> {
        self.replace(next, |status| status.signal() == Some(Signal::SIGKILL as i32))
    }

    /// Starts a process that waits for the guest, or loads it.
    pub(super) fn resume(&mut self, from: &str) -> Result<Child> {
        self.started += 1;
        let mut words = vec!["resume".to_owned(), format!("--from={from}")];
        words.extend(self.lazy.then(|| "--lazy".to_owned()));
        load(self.name, &words, self.started - 1, self.confined)
    }

    /// Puts the next owner in the place of a source, which must end, and as it should.
    fn replace(&mut self, next: Child, as_it_should: fn(&ExitStatus) -> bool) -> Result<()> {
        let mut source = std::mem::replace(&mut self.process, next);
        match exit(&mut source, WITHIN)? {
            Some(status) if as_it_should(&status) => Ok(()),
            Some(status) => bail!("the source, whose guest is another's, ended with {status}"),
            None => {
                threads::show(source.id());
                source.kill()?;
                bail!("the source, whose guest is another's, did not end within {WITHIN:?}")
            }
        }
    }

    fn transfer(&mut self) -> Result<Value> {
        let name = self.name;
        let (target, incoming) = self.target("in")?;
        let report = save(&["transfer", name, "--to", &unix(&incoming)])?;
        self.replace(target, ExitStatus::success)?;
        Ok(report)
    }

    /// Tries a handover that must fail and leave the guest here; gives what was said.
    pub fn try_in_vain(&mut self, mode: Mode) -> Result<String> {
        const BOUND: &str = "--downtime-limit=3000";
        let name = self.name;
        let incoming = paths::meeting(name, "vain");
        let before = status(name)?["run-state"].clone();
        let mut target = None;
        let done = match mode {
            Mode::Transfer => {
                target = Some(self.target("vain")?.0);
                save(&["transfer", name, "--to", &unix(&incoming), BOUND])
            }
            Mode::Exec => save(&["exec", name, BOUND]),
            Mode::Reboot => save(&["reboot", name, "--to", &format!("file:{RUNTIME}/{name}.vain"), BOUND]),
        };
        let Err(error) = done else { bail!("{mode} was not refused") };
        let (said, after) = (format!("{error:#}"), status(name)?["run-state"].clone());
        if let Some(target) = &mut target {
            // Where something stands in the way, the target hears nothing, and waits on.
            let waits = said.contains("exit status: 3");
            let ended = if waits { None } else { exit(target, WITHIN)? };
            if ended.is_none() {
                target.kill()?;
                target.wait()?;
                // A target that was connected to has removed it.
                let _ = fs::remove_file(&incoming);
            }
            if !waits && ended.is_none_or(|status| status.success()) {
                bail!("the target of a handover that failed goes on: {said}");
            }
        }
        if !is_in_source(&said) || before != after {
            bail!("the guest was {before}, and is {after} after {mode} was refused: {said}");
        }
        Ok(said)
    }

    /// Tries to save the guest suspended, with less time for that than it takes; says how that failed.
    pub fn suspend_in_vain(&mut self) -> Result<String> {
        let to = format!("file:{RUNTIME}/{}.vain", self.name);
        let Err(error) = save(&["reboot", self.name, "--suspend=1", "--copy-ram", "--to", &to]) else {
            bail!("it was suspended within a second, and saved");
        };
        let said = format!("{error:#}");
        ensure!(is_in_source(&said), "the guest is not said to be in the source: {said}");
        Ok(said)
    }

    fn reboot(&mut self) -> Result<Value> {
        if self.live_update {
            return self.back_from_a_live_update();
        }
        let file = state_file(self.name);
        self.save_to(&file)?;
        self.load_from(&file)
    }

    /// Saves the guest for the next kernel, which does not come, and loads it under this one.
    fn back_from_a_live_update(&mut self) -> Result<Value> {
        save(&[&["reboot", self.name, "--to", "luo:", "--kexec"], self.suspend()].concat())?;
        self.has_saved()?;
        stale::refuse_strange(self.name)?;
        self.process = self.resume(&luo(self.name))?;
        let loaded = self.loaded()?;
        stale::refuse_loaded(self.name)?;
        Ok(loaded)
    }

    /// Whether its RAM goes into the file when it is saved to one.
    fn is_copied(&self) -> bool {
        self.ram.is_none()
    }

    fn save_to(&mut self, file: &Path) -> Result<()> {
        let to = format!("file:{}", file.display());
        let copied: &[&str] = if self.is_copied() { &["--copy-ram"] } else { &[] };
        let said = save(&[&["reboot", self.name, "--to", &to][..], copied, self.suspend()].concat())?;
        if self.is_copied() {
            let (ram, length) = (&said["report"]["ram-copied"], fs::metadata(file)?.len());
            let phases = phases(&said)?;
            let took = phases.iter().find(|time| time.phase == "copy RAM").map_or(0, |time| time.us / 1000);
            println!("  {ram} bytes of RAM in a file of {length}, in {took} ms");
        }
        self.has_saved()
    }

    /// How it is asked that the guest is suspended. One under TCG takes its time.
    fn suspend(&self) -> &'static [&'static str] {
        if self.suspends { &["--suspend=120"] } else { &[] }
    }

    /// Waits for the end of a process whose guest was saved.
    fn has_saved(&mut self) -> Result<()> {
        match exit(&mut self.process, WITHIN)? {
            Some(status) if status.success() => Ok(()),
            ended => bail!("the source saved its guest and then: {ended:?}"),
        }
    }

    fn load_from(&mut self, file: &Path) -> Result<Value> {
        self.process = self.resume(&format!("file:{}", file.display()))?;
        self.loaded()
    }

    /// Waits for a guest that is loaded; gives what its owner says of itself.
    fn loaded(&self) -> Result<Value> {
        let loaded = |status: &Value| ["running", "paused"].iter().any(|state| status["run-state"] == *state);
        until("the guest to be loaded", || Ok(status(self.name).ok().filter(loaded)))
    }
}

/// Where a guest is that the kernel has kept.
fn luo(name: &str) -> String {
    format!("luo:{name}")
}

/// How `cpr-load` is asked to boot a guest with such RAM; and the descriptors that are given to it.
fn arguments(name: &str, guest: &Guest, first: usize, backing: &str) -> Result<(Vec<String>, Vec<File>)> {
    let mut arguments = vec![
        "boot".to_owned(),
        format!("--name={name}"),
        format!("--cpus={}", guest.cpus),
        format!("--memory=size={},backing={backing}", guest.memory),
        format!("--kernel={GUEST_KERNEL}"),
        format!("--initrd={GUEST_INITRD}"),
        format!("--cmdline={}", guest.cmdline()),
        match guest.console {
            Terminal::Serial => format!("--serial=unix:{}", serial(name).display()),
            Terminal::Virtio => {
                let agent = if guest.agent {
                    format!(",port.org.qemu.guest_agent.0=unix:{}", agent(name).display())
                } else {
                    String::new()
                };
                format!("--device=virtio-serial-pci,console=unix:{}{agent}", serial(name).display())
            }
        },
    ];
    if guest.root.is_none() && guest.console == Terminal::Virtio {
        arguments.push(format!("--serial=file:{}", serial_log(name).display()));
    }
    if guest.root.is_some() {
        arguments.push(format!("--serial=unix:{}", tty(name).display()));
        arguments.push(format!("--device=virtio-blk-pci,path=/dev/{}", disks::ROOT));
    }
    let disk = |(index, disk): (usize, &Disk)| {
        let direct = if disk.delay_ms > 0 { ",direct=on" } else { "" };
        let (id, path) = (disks::device(guest, index), disks::path(guest, index, disk));
        format!("--device=virtio-blk-pci,id={id},path={}{direct}", path.display())
    };
    arguments.extend(guest.disks.iter().enumerate().map(disk));
    let mut given = Vec::new();
    for (index, mut argument) in assigned::arguments(guest, first).enumerate() {
        if guest.assigned.get(index).is_some_and(|disk| disk.given) {
            let files = vfio::give(&assigned::place(guest, first, index).to_string())?;
            let [device, iommufd] = files.each_ref().map(AsRawFd::as_raw_fd);
            argument = format!("{argument},fd={device},iommufd-fd={iommufd}");
            given.extend(files);
        }
        arguments.push(argument);
    }
    if let Some(mediated) = &guest.mediated {
        arguments.push(mediated.make()?);
    }
    arguments.extend(guest.net.iter().filter(|net| net.card.is_none()).map(|net| {
        let vhost = if net.vhost { ",vhost=on" } else { "" };
        let (tap, mac, queues) = (net::TAP, net::mac(), net.queues);
        format!("--device=virtio-net-pci,tap={tap},mac={mac},queues={queues}{vhost}")
    }));
    if guest.vsock {
        arguments.push(format!("--device=vhost-vsock-pci,guest-cid={}", vsock::GUEST));
    }
    arguments.extend(guest.devices.iter().map(|device| format!("--device={device}")));
    Ok((arguments, given))
}

/// Tries to boot a guest with assigned devices and its RAM in a file on its first disk, which cannot be pinned.
pub fn refuse_ram_on_disk(name: &str, guest: &Guest, first: usize) -> Result<()> {
    let (disk, at) = (Path::new("/dev").join(disks::nth(0)), Path::new("/run/disk"));
    fs::create_dir_all(at)?;
    mount(Some(&disk), at, Some("ext4"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mounting {}", disk.display()))?;
    let ram = at.join("ram");
    let boot = || {
        // The disk is the host's meanwhile.
        let guest = Guest { disks: Vec::new(), ..guest.clone() };
        let (arguments, _given) = arguments(name, &guest, first, &format!("file,path={}", ram.display()))?;
        refused(name, &arguments, "cannot be pinned for a device")
    };
    let booted = boot();
    if ram.exists() {
        fs::remove_file(&ram).context("removing the RAM's file")?;
    }
    umount2(at, MntFlags::empty()).with_context(|| format!("unmounting {}", disk.display()))?;
    booted
}

impl Machine for Owner {
    fn meet(&mut self) -> Result<()> {
        self.meeting.as_ref().map_or(Ok(()), |meeting| meeting.wait())
    }

    fn hand_over(&mut self, mode: Mode) -> Result<HandOver> {
        self.meet()?;
        let started = Instant::now();
        let report = match mode {
            Mode::Transfer => self.transfer()?,
            Mode::Exec => save(&["exec", self.name])?,
            Mode::Reboot => self.reboot()?,
        };
        if let Some(status) = self.process.try_wait()? {
            bail!("the guest's owner after {mode} ended with {status}");
        }
        let total = milliseconds(started.elapsed());
        Ok(HandOver { downtime: downtime(&report), total, phases: phases(&report)? })
    }

    fn save(&mut self) -> Result<()> {
        if self.leads() {
            let copied: &[&str] = if self.is_copied() && !self.live_update { &["--copy-ram"] } else { &[] };
            let to = if self.live_update { "luo:".to_owned() } else { format!("dir:{}", kexec::KEPT) };
            let how = [&["reboot", "--all", "--kexec", "--to", &to], copied, self.suspend()].concat();
            let said = save(&how)?;
            for guest in said["guests"].as_array().into_iter().flatten() {
                let report = &guest["report"];
                println!(
                    "  {} saved: {} bytes of state, {} of RAM kept, {} copied",
                    guest["guest"], report["state-bytes"], report["ram-kept"], report["ram-copied"]
                );
            }
        }
        self.meet()?;
        self.has_saved()
    }

    fn leads(&self) -> bool {
        self.name == GUESTS[0]
    }

    fn name(&self) -> &'static str {
        self.name
    }

    fn wanted(&mut self) -> Result<()> {
        let mut client = self.monitor()?;
        if let Some(device) = self.device.take() {
            vfio::ask_back(device);
        }
        let event = client.wait_event("X_CPR_DEVICE_WANTED", WITHIN)?;
        ensure!(event.data["device"] == "vfio-2", "the host wants {}", event.data);
        Ok(())
    }

    fn failed(&mut self) -> Result<()> {
        let mut client = self.monitor()?;
        aer::report(self.process.id())?;
        client.wait_event("STOP", WITHIN)?;
        let state = &status(self.name)?["run-state"];
        ensure!(state == "internal-error", "the device has failed, and the guest is {state}");
        client.execute("quit", &json!({}))?;
        ensure!(self.ended(WITHIN)?, "the owner of a guest that cannot go on did not end within {WITHIN:?}");
        Ok(())
    }

    fn balloon(&mut self, bytes: u64) -> Result<()> {
        let mut client = self.monitor()?;
        client.execute("balloon", &json!({"value": bytes}))?;
        let mut kept = 0;
        let reached = until("the guest to keep as much as it is asked to", || {
            kept = client.execute("query-balloon", &json!({}))?["actual"].as_u64().unwrap_or_default();
            Ok((kept == bytes).then_some(()))
        });
        reached.with_context(|| format!("it keeps {kept} bytes and not {bytes}"))
    }

    fn roll_back(&mut self) -> Result<HandOver> {
        let total = milliseconds(faults::roll_back(self)?);
        Ok(HandOver { downtime: None, total, phases: Vec::new() })
    }

    fn refuse(&mut self, trouble: Trouble) -> Result<Duration> {
        trouble.make(self)
    }

    fn orphan(&mut self) -> Result<Duration> {
        faults::orphan(self)
    }

    fn stop(&mut self) -> Result<()> {
        save(&["stop", self.name]).map(drop)
    }

    fn cont(&mut self) -> Result<()> {
        save(&["cont", self.name]).map(drop)
    }

    fn sleeps(&mut self) -> Result<()> {
        let asleep = || Ok((status(self.name)?["run-state"] == "suspended").then_some(()));
        until("the guest to sleep", asleep)
    }

    fn wake(&mut self) -> Result<()> {
        self.monitor()?.execute("system_wakeup", &json!({}))?;
        Ok(())
    }

    fn wakes(&mut self) -> Result<()> {
        let awake = || Ok((status(self.name)?["run-state"] == "running").then_some(()));
        until("the guest to be woken", awake)
    }

    fn is_paused(&self) -> Result<bool> {
        Ok(status(self.name)?["run-state"] == "paused")
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

    fn locked(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmLck:"))?;
        line.split_whitespace().next()?.parse().ok()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
