//! Who is measured: a guest of ours or of QEMU, handed over in one mode again and again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use vmm_core::cpr::Mode;
use vmm_core::monitor::client::Client;

use super::stats::Label;
use crate::guests::{self, Guest, Work};
use crate::harness::host::{Host, Target};
use crate::harness::qemu::{self, Qemu};
use crate::harness::ram::Ram;
use crate::harness::vm::{Spec, Vm};
use crate::harness::watch::{Stillness, Watcher};

/// The guest that all of them run.
const GUEST: Guest = Guest::new(Work::Heartbeat, guests::Mode::Long);
/// What the guest itself uses of its RAM.
const USED: u64 = 16 << 20;

/// One who is measured.
pub trait Contender {
    /// Which one it is.
    fn label(&self) -> Label;
    /// Its guest's RAM.
    fn ram(&self) -> Arc<Ram>;
    /// Lets the guest run.
    fn go(&mut self) -> anyhow::Result<()>;
    /// Pauses the guest.
    fn pause(&mut self) -> anyhow::Result<()>;
    /// Does what comes before a handover and can be done by hand: starts the target.
    fn prepare(&mut self) -> anyhow::Result<()>;
    /// Hands over; returns when the guest runs again.
    fn hand_over(&mut self) -> anyhow::Result<()>;
    /// A new client of the monitor of the process that has the guest.
    fn monitor(&self) -> anyhow::Result<Client>;
    /// The downtime that the product itself reports of the last handover.
    fn reported(&self) -> Option<Duration>;
}

/// Watches the guest while something is done, and until it counts after that.
pub fn watch(
    contender: &mut dyn Contender,
    what: impl FnOnce(&mut dyn Contender) -> anyhow::Result<()>,
) -> anyhow::Result<Stillness> {
    let ram = contender.ram();
    let watcher = Watcher::start(ram.clone());
    let result = what(contender).and_then(|()| ram.wait_for_heartbeat(1));
    let seen = watcher.finish()?;
    result.map(|()| seen)
}

/// A guest of ours.
pub struct Ours<'h> {
    host: &'h Host,
    mode: Mode,
    memory_mib: u64,
    vm: Vm<'h>,
    target: Option<Target>,
    reported: Option<Duration>,
}

impl<'h> Ours<'h> {
    /// Boots it, touches its RAM and pauses it.
    pub fn boot(host: &'h Host, mode: Mode, memory_mib: u64) -> anyhow::Result<Self> {
        let spec = Spec { memory_mib, ram_file: mode == Mode::CprReboot, ..Spec::new(GUEST, 1) };
        let mut this =
            Self { host, mode, memory_mib, vm: Vm::boot(host, spec)?, target: None, reported: None };
        this.vm.ram.touch(USED, memory_mib << 20)?;
        this.pause()?;
        Ok(this)
    }
}

impl Contender for Ours<'_> {
    fn label(&self) -> Label {
        Label { system: "ours", mode: self.mode, memory_mib: self.memory_mib }
    }

    fn ram(&self) -> Arc<Ram> {
        self.vm.ram.clone()
    }

    fn go(&mut self) -> anyhow::Result<()> {
        self.vm.ask("cont").map(drop)
    }

    fn pause(&mut self) -> anyhow::Result<()> {
        self.vm.ask("stop").map(drop)
    }

    fn prepare(&mut self) -> anyhow::Result<()> {
        if self.mode == Mode::CprTransfer {
            self.target = Some(self.host.target()?);
        }
        Ok(())
    }

    fn hand_over(&mut self) -> anyhow::Result<()> {
        let outcome = match self.target.take() {
            Some(target) => self.vm.transfer_into(target)?,
            None => self.vm.handover(self.mode)?,
        };
        self.reported = outcome.downtime();
        Ok(())
    }

    fn monitor(&self) -> anyhow::Result<Client> {
        self.vm.monitor()
    }

    fn reported(&self) -> Option<Duration> {
        self.reported
    }
}

/// A guest of QEMU.
pub struct Theirs {
    mode: Mode,
    memory_mib: u64,
    vm: Qemu,
    ram: Arc<Ram>,
    target: Option<qemu::Target>,
}

impl Theirs {
    /// Boots it, touches its RAM and pauses it.
    pub fn boot(host: &Host, mode: Mode, memory_mib: u64) -> anyhow::Result<Self> {
        let rom = host.fresh("rom");
        std::fs::write(&rom, GUEST.image()).context("writing the ROM")?;
        let directory: PathBuf = host.fresh("qemu");
        std::fs::create_dir(&directory).context("making QEMU's directory")?;
        let vm = Qemu::boot(qemu::Config { rom, accelerator: "kvm", cpus: 1, memory_mib }, &directory)?;
        let ram = Arc::new(vm.ram()?);
        ram.wait_for_heartbeat(1)?;
        ram.touch(USED, memory_mib << 20)?;
        let mut this = Self { mode, memory_mib, vm, ram, target: None };
        this.pause()?;
        Ok(this)
    }
}

impl Contender for Theirs {
    fn label(&self) -> Label {
        Label { system: "QEMU", mode: self.mode, memory_mib: self.memory_mib }
    }

    fn ram(&self) -> Arc<Ram> {
        self.ram.clone()
    }

    fn go(&mut self) -> anyhow::Result<()> {
        self.vm.execute("cont", &json!({})).map(drop)
    }

    fn pause(&mut self) -> anyhow::Result<()> {
        self.vm.execute("stop", &json!({})).map(drop)
    }

    fn prepare(&mut self) -> anyhow::Result<()> {
        if self.mode == Mode::CprTransfer {
            self.target = Some(self.vm.prepare()?);
        }
        Ok(())
    }

    fn hand_over(&mut self) -> anyhow::Result<()> {
        match self.target.take() {
            Some(target) => self.vm.transfer(target),
            None => self.vm.exec(),
        }
    }

    fn monitor(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&self.vm.second_monitor())?)
    }

    fn reported(&self) -> Option<Duration> {
        None
    }
}
