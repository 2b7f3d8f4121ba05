//! A machine for a guest that comes from elsewhere.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::backends::{Backends, SavedRam, Source};
use super::background::in_background;
use super::build::{self, Parts};
use super::entrance::Entrance;
use super::events::EventSink;
use super::run_state::RunState;
use super::state::{MachineState, RunStateRecord, WakeRecord};
use super::{LoadError, Loaded, Machine};
use crate::config::{DeviceConfig, MachineConfig};
use crate::cpr::fds::{FdError, FdName, FdTable};
use crate::cpr::format::{SectionKind, StateReader};
use crate::cpr::reboot::copy::{Arrival, Lost};
use crate::cpr::reboot::stamp;
use crate::cpr::report::Stopwatch;
use crate::memory::{MemoryError, MissingPages, RamBlock, RamBlockState, RamKind};
use crate::vcpu::state::VcpuState;
use crate::x86::clock::{ClockState, Resumption};
use crate::x86::irqchip::VmState;

/// What differs on this host from what the saved state says.
#[derive(Clone)]
pub struct Overrides {
    /// `KEY=VALUE` each, see [`MachineConfig::set`].
    pub set: Vec<String>,
    /// Whether the guest waits for `cont`, even if it ran.
    pub paused: bool,
    /// Where the machine's events go.
    pub events: EventSink,
    /// Asked before a guest from a file is claimed: its owner makes ready for it, or refuses.
    pub admit: Admit,
    /// Whether this is only tried: nothing is made that outlives the process.
    pub trial: bool,
    /// Whether RAM that is in a file may come in while the guest runs, and what is done when some of it cannot be had then.
    pub lazy: Option<Lost>,
    /// Whether a guest may come in still.
    pub entrance: Arc<Entrance>,
}

/// See [`Overrides::admit`].
pub type Admit =
    Arc<dyn Fn(&MachineConfig) -> Result<(), Box<dyn std::error::Error + Send + Sync>> + Send + Sync>;

/// Why RAM cannot come in while the guest runs.
#[derive(Debug, thiserror::Error)]
pub enum NotLazy {
    /// Not in this RAM.
    #[error("its RAM is of the kind {0:?}; pages can be waited for in a memfd of ordinary ones")]
    Backing(RamKind),
    /// An assigned device needs all of it.
    #[error("the guest has an assigned device, for which all of its RAM is pinned")]
    Assigned,
    /// This host, or this process, cannot.
    #[error(transparent)]
    Host(#[from] MemoryError),
}

/// A machine that waits for its guest's state.
#[derive(Debug)]
pub struct Incoming {
    machine: Machine,
    paused: bool,
}

impl Incoming {
    /// Builds the machine that the state describes, on what was handed over.
    pub fn prepare(
        state: &mut StateReader,
        fds: &mut FdTable,
        overrides: &Overrides,
    ) -> Result<Self, LoadError> {
        Self::build(state, Source::Kept(fds), overrides)
    }

    /// Builds the machine that the state describes, on what its configuration names.
    pub fn build(
        state: &mut StateReader,
        mut source: Source<'_>,
        overrides: &Overrides,
    ) -> Result<Self, LoadError> {
        let MachineState { config, platform } = state.take(0)?;
        let mut config = MachineConfig::from_toml(&config)?;
        for assignment in &overrides.set {
            config.set(assignment)?;
        }
        let mut blocks = Vec::new();
        for index in state.instances(SectionKind::Ram) {
            let block: RamBlockState = state.take(index)?;
            blocks.push(match &mut source {
                Source::Kept(fds) => {
                    let fd = fds.take(&FdName::new(&block.name, 0))?;
                    RamBlock::adopt(&block.name, fd, &config.memory, &block)?
                }
                Source::Reopened(SavedRam::Preserved(kept)) => {
                    if let Some(rom) = RamBlock::rom_of(&config.memory, &block)? {
                        rom
                    } else {
                        let missing = || FdError::Missing(FdName::new(&block.name, 0));
                        let fd = kept.next().ok_or_else(missing)?;
                        RamBlock::adopt(&block.name, fd, &config.memory, &block)?
                    }
                }
                Source::Reopened(SavedRam::Copied) => {
                    let ram = RamBlock::renew(&config.memory, &block, overrides.trial)?;
                    if let Some(location) = ram.stamp_location() {
                        stamp::refuse_waiting(&location)?;
                        ram.empty()?;
                    }
                    ram
                }
                Source::New | Source::Restarted(_) | Source::Reopened(SavedRam::Stays) => {
                    RamBlock::reopen(&config.memory, &block)?
                }
            });
        }
        let backends = Backends::make(&config, &mut source)?;
        let events = overrides.events.clone();
        let parts = Parts { config, platform: Some(platform), blocks, backends, events };
        let kept = match source {
            Source::Kept(fds) => Some(fds),
            Source::New | Source::Restarted(_) | Source::Reopened(_) => None,
        };
        let machine = build::assemble(parts, RunState::Inmigrate, kept)?;
        let faulted = in_background(|| machine.ram.populate(&AtomicBool::new(false)));
        tracing::debug!("faulted in {faulted} bytes of RAM that are in use");
        Ok(Self { machine, paused: overrides.paused })
    }

    /// What it is made of.
    pub fn config(&self) -> &MachineConfig {
        &self.machine.config
    }

    /// The machine's main RAM.
    pub fn ram_block(&self) -> Option<&RamBlock> {
        self.machine.ram_block()
    }

    /// The pages of its RAM, which nobody has touched yet, to be put in when they are waited for.
    pub fn missing_pages(&self) -> Result<MissingPages, NotLazy> {
        if self.config().devices.iter().any(DeviceConfig::is_assigned) {
            return Err(NotLazy::Assigned);
        }
        match self.ram_block().map(RamBlock::kind) {
            Some(RamKind::Memfd) | None => Ok(MissingPages::of(&self.machine.ram)?),
            Some(kind) => Err(NotLazy::Backing(kind)),
        }
    }

    /// Has its RAM come in by this, for as long as anybody could wait for it. What the guest gives back meanwhile waits: it would be filled
    /// again.
    pub fn fill_by(&mut self, arrival: Arc<Arrival>) {
        if let Some(balloon) = &self.machine.devices.balloon {
            balloon.hold();
            let balloon = Arc::downgrade(balloon);
            arrival.then(Box::new(move || balloon.upgrade().iter().for_each(|balloon| balloon.release())));
        }
        self.machine.arrival = Some(arrival);
    }

    /// Refuses descriptors that nothing wants: only the monitor's may be left.
    pub fn refuse_unclaimed(&self, fds: &FdTable) -> Result<(), FdError> {
        match fds.iter().find(|(name, _)| !name.name.starts_with("monitor.")) {
            Some((name, _)) => Err(FdError::Unclaimed(name.clone())),
            None => Ok(()),
        }
    }

    /// Puts the guest's state in it.
    pub fn load(self, state: &mut StateReader, watch: &mut Stopwatch) -> Result<Loaded, LoadError> {
        let machine = self.machine;
        let RunStateRecord { run_state } = state.take(0)?;
        if !run_state.can_be_handed_over() {
            return Err(super::IllegalStep { from: RunState::Inmigrate, to: run_state }.into());
        }
        let wake = state.take_optional::<WakeRecord>(0)?.is_some_and(|record| record.wake);
        let clock: ClockState = state.take(0)?;
        let chips: VmState = state.take(0)?;
        let vcpus = state
            .instances(SectionKind::Vcpu)
            .into_iter()
            .map(|index| state.take::<VcpuState>(index))
            .collect::<Result<Vec<_>, _>>()?;
        watch.lap("target: read");
        let clock = Resumption::new(&clock, machine.vcpus.tsc_khz(), machine.vcpus.host_tsc_khz())?;
        let vcpus = machine.vcpus.load_all(vcpus, &clock)?;
        watch.lap("target: load vcpus");
        chips.load(&machine.vm)?;
        watch.lap("target: load chips");
        for device in machine.devices.all() {
            device.load(state)?;
            watch.lap_of("target: load", device.id());
        }
        machine.devices.msi.commit()?;
        machine.vcpus.unhalt(&machine.vm, &vcpus, &machine.platform)?;
        watch.lap("target: load interrupts");
        let off = clock.load_clock(&machine.vm)?;
        machine.vcpus.after_clock(&vcpus)?;
        machine.vcpus.have_stood(clock.stood()?);
        tracing::debug!("kvmclock is off by {off} ns");
        watch.lap("target: load clock");
        let loaded = Loaded { machine, run_state, wake: wake && run_state == RunState::Suspended };
        Ok(if self.paused { loaded.paused() } else { loaded })
    }
}
