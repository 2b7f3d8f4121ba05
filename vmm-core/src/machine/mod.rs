//! Builds a machine cold or from saved state; owns its run state.
//!
//! 1. `build` makes everything that can be made while the guest still runs elsewhere: VM, slots, vCPU threads, devices.
//! 2. `cold` puts a kernel or firmware in it; `incoming` puts saved state in it. Either gives a [`Loaded`], which
//!    enters the guest only with a [`Claim`].
//! 3. A [`Machine`] can be stopped and go on; [`Stopped`] is the only thing that can be saved.

mod backends;
mod background;
mod build;
mod cold;
mod entrance;
pub mod events;
mod exits;
mod incoming;
mod irq;
mod msi;
mod pci;
pub mod run_state;
mod sleep;
pub mod state;
mod stopped;
mod turn;
mod vfio;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kvm_ioctls::VmFd;

pub use self::backends::{SavedRam, Source};
pub(crate) use self::background::in_background;
pub use self::build::Devices;
pub use self::cold::Waiting;
pub use self::entrance::{Ending, Entrance};
pub use self::incoming::{Incoming, Overrides};
use self::run_state::{IllegalStep, RunState};
use self::state::{MachineState, RunStateRecord, WakeRecord};
pub use self::stopped::Stopped;
use self::turn::Turns;
use crate::config::{ConfigError, MachineConfig};
use crate::cpr::Mode;
use crate::cpr::blockers::Blocker;
use crate::cpr::fds::{FdError, FdTable};
use crate::cpr::format::{FormatError, HeaderInfo, StateWriter, Versions};
use crate::cpr::ownership::Claim;
use crate::cpr::reboot::copy::Arrival;
use crate::cpr::report::Stopwatch;
use crate::devices::{Device, DeviceError, pm};
use crate::memory::{GuestRam, MemoryError, RamBlock, RamFate};
use crate::vcpu::group::{RestartError, VcpuError, Vcpus};
use crate::vcpu::thread::StopTimeout;
use crate::x86::acpi::VectorError;
use crate::x86::boot::BootError;
use crate::x86::caps::CapsError;
use crate::x86::clock::ClockError;
use crate::x86::irqchip::{VmState, VmStateError};
use crate::x86::platform::{Platform, PlatformError};

/// How long `stop` waits for the vCPUs.
const STOP: Duration = Duration::from_secs(5);

/// Why a machine could not be built, stopped, saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// /dev/kvm cannot be used.
    #[error("{doing}: {source}")]
    Kvm {
        /// What was being done.
        doing: &'static str,
        /// What the kernel answered.
        source: vmm_sys_util::errno::Error,
    },
    /// This host lacks capabilities.
    #[error(transparent)]
    Caps(#[from] CapsError),
    /// This host lacks what the guest was shown.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// RAM that is somebody else's.
    #[error("pc.ram: {0}")]
    Stamp(#[from] crate::cpr::reboot::stamp::StampError),
    /// Memory that the kernel keeps, and in which a guest waits.
    #[error(transparent)]
    LiveUpdate(#[from] crate::cpr::liveupdate::LiveUpdateError),
    /// Kernel, initrd or firmware.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A firmware image could not be read.
    #[error("reading firmware {path}: {source}")]
    Firmware {
        /// Its path.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A vCPU.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// A vCPU did not stop.
    #[error(transparent)]
    Stop(#[from] StopTimeout),
    /// The interrupt chips.
    #[error(transparent)]
    Vm(#[from] VmStateError),
    /// The clock.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// A device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Sections.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Descriptors.
    #[error(transparent)]
    Fd(#[from] FdError),
    /// The run state does not allow it.
    #[error(transparent)]
    Step(#[from] IllegalStep),
    /// The guest is ending by itself.
    #[error("the guest has powered off, reset or crashed: there is nothing to hand over")]
    Ended,
    /// The vCPUs could not be put at a start.
    #[error("waking the guest: {0}")]
    Restart(#[from] RestartError),
    /// The guest cannot be woken.
    #[error(transparent)]
    Vector(#[from] VectorError),
    /// A thread could not be started.
    #[error("starting a vCPU's thread: {0}")]
    Thread(std::io::Error),
}

impl MachineError {
    /// What is in the way, where it is this host.
    pub fn blockers(&self) -> Vec<Blocker> {
        match self {
            Self::Platform(error) => vec![Blocker::new("cpu", error.to_string())],
            Self::Caps(error) => vec![Blocker::new("kvm", error.to_string())],
            Self::Memory(error) => vec![Blocker::new("memory", error.to_string())],
            _ => Vec::new(),
        }
    }
}

impl From<crate::vcpu::state::VcpuStateError> for MachineError {
    fn from(error: crate::vcpu::state::VcpuStateError) -> Self {
        Self::Vcpu(error.into())
    }
}

/// An error while loading: the same as any of the machine's.
pub type LoadError = MachineError;

/// A guest with its VM, vCPUs, RAM and devices.
#[derive(Debug)]
pub struct Machine {
    config: MachineConfig,
    platform: Platform,
    vcpus: Vcpus,
    /// The interrupt chips and the timer, as they were made.
    fresh_chips: VmState,
    devices: Devices,
    /// RAM that comes in while the guest runs: for as long as anybody could wait for it.
    arrival: Option<Arc<Arrival>>,
    ram: GuestRam,
    blocks: Vec<RamBlock>,
    vm: Arc<VmFd>,
    state: Turns,
    ended: Arc<AtomicBool>,
    /// The guest has gone to sleep, and was not woken. Where the run state does not say so yet, its vCPUs still run.
    asleep: Arc<AtomicBool>,
    /// It is to be woken by whoever serves it.
    wake_due: AtomicBool,
    claim: Mutex<Option<Claim>>,
}

/// What is left of a machine without vCPUs and devices, to be dropped in this order.
#[derive(Debug)]
pub struct Remains {
    _vm: Arc<VmFd>,
    _ram: GuestRam,
    _blocks: Vec<RamBlock>,
}

/// A machine with its state in it, not yet entered.
#[derive(Debug)]
pub struct Loaded {
    machine: Machine,
    run_state: RunState,
    /// It sleeps because it was suspended to be saved.
    wake: bool,
}

impl Loaded {
    /// Whether entering it will let its vCPUs run: a guest that was paused stays paused.
    pub fn will_run(&self) -> bool {
        self.run_state == RunState::Running
    }

    /// Makes a guest that ran wait for `cont`, and leaves one asleep that was suspended to be saved.
    #[must_use]
    pub fn paused(mut self) -> Self {
        if self.run_state == RunState::Running {
            self.run_state = RunState::Paused;
        }
        self.wake = false;
        self
    }

    /// Lets the guest go on, or stay paused if it was. The claim is the proof that it is ours; `watch` gets a lap for each
    /// device, and ends when the vCPUs are let go.
    pub fn enter(self, claim: Claim, watch: &mut Stopwatch) -> Machine {
        *self.machine.lock_claim() = Some(claim);
        self.machine.wake_due.store(self.wake, Ordering::SeqCst);
        watch.lap("target: claim");
        for device in self.machine.devices.all() {
            device.resume();
            watch.lap_of("target: resume", device.id());
        }
        *self.machine.state.wait() = self.run_state;
        let runs = self.run_state == RunState::Running;
        if runs {
            self.machine.vcpus.tell_of_stop(self.machine.ram.memory());
        }
        // Before they are woken: the guest may take this processor at once.
        watch.lap("target: enter");
        if runs {
            self.machine.vcpus.run();
        }
        self.machine
    }
}

/// The error of what only a balloon can do.
#[derive(Debug, thiserror::Error)]
#[error("the guest has no balloon: boot it with --device virtio-balloon-pci")]
pub struct NoBalloon;

impl Machine {
    /// What it is made of.
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// Its devices.
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// Its main RAM.
    pub fn ram_block(&self) -> Option<&RamBlock> {
        self.blocks.first()
    }

    /// How many bytes of its RAM are there, and of how many, while some are still on their way from the file that it was saved to.
    pub fn ram_outstanding(&self) -> Option<(u64, u64)> {
        self.arrival.as_ref()?.outstanding()
    }

    /// Waits until all of its RAM is there: nobody else may have it before. `false` where that is not wanted any more.
    pub fn wait_for_ram(&self, cancelled: &dyn Fn() -> bool) -> bool {
        self.arrival.as_ref().is_none_or(|arrival| arrival.wait(cancelled))
    }

    /// How many vCPUs it has.
    pub fn vcpu_count(&self) -> u32 {
        self.vcpus.count()
    }

    /// The vCPU threads' ids in the kernel.
    pub fn vcpu_threads(&self) -> Vec<i32> {
        self.vcpus.thread_ids()
    }

    /// Bytes of RAM.
    pub fn ram_size(&self) -> u64 {
        self.config.memory.size.0
    }

    /// Bytes of ROM.
    pub fn rom_size(&self) -> u64 {
        self.blocks.iter().skip(1).map(RamBlock::size).sum()
    }

    /// What the guest is doing.
    pub fn run_state(&self) -> RunState {
        self.state.shown()
    }

    fn lock_claim(&self) -> MutexGuard<'_, Option<Claim>> {
        self.claim.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the vCPUs. `false` if they were stopped, or the guest sleeps.
    pub fn stop(&self) -> Result<bool, MachineError> {
        let mut state = self.state.wait_unless_handed_over(RunState::Paused)?;
        if matches!(*state, RunState::Paused | RunState::Suspended) {
            return Ok(false);
        }
        state.step(RunState::Paused)?;
        if let Err(error) = self.vcpus.park(Instant::now() + STOP) {
            *state = RunState::Running;
            self.vcpus.enter(self.ram.memory());
            return Err(error.into());
        }
        if self.is_asleep() {
            *state = RunState::Suspended;
            return Ok(false);
        }
        Ok(true)
    }

    /// Lets the vCPUs go on. `false` if they run, or the guest sleeps: it is woken otherwise.
    pub fn cont(&self) -> Result<bool, MachineError> {
        let mut state = self.state.wait_unless_handed_over(RunState::Running)?;
        if matches!(*state, RunState::Running | RunState::Suspended) {
            return Ok(false);
        }
        state.step(RunState::Running)?;
        self.vcpus.enter(self.ram.memory());
        Ok(true)
    }

    /// Stops the vCPUs for good: the guest powered off or cannot go on. `false` if it was given away: it is somebody else's to end.
    pub fn end(&self, state: RunState) -> bool {
        let mut now = self.state.wait();
        if *now == RunState::Postmigrate {
            return false;
        }
        if let Err(error) = self.vcpus.park(Instant::now() + STOP) {
            tracing::error!("{error}");
        }
        *now = state;
        true
    }

    /// Whether `system_reset` makes sense now.
    pub fn may_reset(&self) -> Result<(), IllegalStep> {
        let from = self.run_state();
        if from.can_be_handed_over() { Ok(()) } else { Err(IllegalStep { from, to: RunState::Running }) }
    }

    /// Presses the power button.
    pub fn press_power_button(&self) -> Result<(), IllegalStep> {
        self.may_reset()?;
        self.devices.pm.raise(pm::Event::PowerButton);
        Ok(())
    }

    /// What wakes the guest, if it sleeps: an event that it has enabled, and has not taken note of.
    pub fn wake_event(&self) -> Option<pm::Event> {
        self.devices.pm.active()
    }

    /// Asks the guest to keep so many bytes of its RAM and to leave the rest to the balloon.
    pub fn balloon(&self, bytes: u64) -> Result<(), NoBalloon> {
        self.devices.balloon.as_ref().ok_or(NoBalloon)?.set_target(self.ram_size().saturating_sub(bytes));
        Ok(())
    }

    /// How many bytes of its RAM the guest has, less what the balloon has.
    pub fn balloon_actual(&self) -> Result<u64, NoBalloon> {
        let balloon = self.devices.balloon.as_ref().ok_or(NoBalloon)?;
        Ok(self.ram_size().saturating_sub(balloon.actual()))
    }

    /// What stands in the way of a handover in this mode: of the guest as it is, or once it was suspended (`asleep`).
    pub fn blockers(&self, mode: Mode, fate: RamFate, asleep: bool) -> Vec<Blocker> {
        let ram = self.blocks.iter().filter_map(|block| block.survives(mode, fate));
        let devices = self.devices.all().flat_map(|device| device.blockers(mode));
        let state = self.run_state();
        let asleep = asleep || state == RunState::Suspended || self.is_asleep();
        let awake = self.blockers_awake().filter(|_| mode == Mode::CprReboot && !asleep);
        let step = (!state.can_be_handed_over())
            .then(|| Blocker::new("run state", format!("the guest is {state}; it cannot be handed over")));
        step.into_iter().chain(ram).chain(awake).chain(devices).collect()
    }

    /// What stands in the way of a reboot unless the guest sleeps.
    fn blockers_awake(&self) -> impl Iterator<Item = Blocker> {
        self.devices.all().filter_map(Device::blocker_awake)
    }

    /// The descriptors that stay open over a handover in this mode, duplicated.
    pub fn descriptors(&self, mode: Mode) -> Result<FdTable, MachineError> {
        let mut fds = FdTable::new();
        for block in &self.blocks {
            block.register(&mut fds)?;
        }
        for device in self.devices.all() {
            device.descriptors(mode, &mut fds)?;
        }
        Ok(fds)
    }

    /// Lets devices that gave out their descriptors go on: the handover that these were for did not happen.
    pub fn release_hold(&self) {
        let state = self.state.wait();
        if state.can_be_handed_over() {
            self.devices.all().for_each(Device::resume);
        }
    }

    /// What the head of its saved state says.
    pub fn header(&self, mode: Mode) -> HeaderInfo {
        HeaderInfo {
            mode,
            guest_name: self.config.name.clone(),
            guest_uuid: self.config.uuid,
            writer: build_name(),
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64),
        }
    }

    /// Writes what the guest is made of: what does not change while it runs.
    pub fn describe(&self, mode: Mode, out: &mut StateWriter) -> Result<(), MachineError> {
        let state = MachineState { config: self.config.to_toml()?, platform: self.platform.clone() };
        out.put(0, &state)?;
        for (index, block) in self.blocks.iter().enumerate() {
            out.put(index as u32, &block.state(mode)?)?;
        }
        Ok(())
    }

    /// Lets go of its vCPUs and devices. What remains takes longer.
    pub fn strip(self) -> Remains {
        let Self { vcpus, devices, ram, blocks, vm, .. } = self;
        drop((vcpus, devices));
        Remains { _vm: vm, _ram: ram, _blocks: blocks }
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::SeqCst)
    }
}

/// This build's name and version, for people and for headers.
pub fn build_name() -> String {
    format!("cpr {}", env!("CARGO_PKG_VERSION"))
}

/// The versions of every section that this build reads and writes.
pub fn readable_versions() -> Versions {
    Versions::new()
        .with::<MachineState>()
        .with::<RunStateRecord>()
        .with::<WakeRecord>()
        .with::<crate::memory::RamBlockState>()
        .with::<crate::vcpu::state::VcpuState>()
        .with::<crate::x86::irqchip::VmState>()
        .with::<crate::x86::clock::ClockState>()
        .with::<crate::devices::serial::SerialState>()
        .with::<crate::devices::chardev::ChardevState>()
        .with::<crate::devices::rtc::RtcState>()
        .with::<crate::devices::pm::PmState>()
        .with::<crate::devices::pci::PciBusState>()
        .with::<crate::devices::pci::PciConfigState>()
        .with::<crate::devices::pci::MsixState>()
        .with::<crate::devices::virtio::VirtioState>()
        .with::<crate::devices::virtio::balloon::BalloonState>()
        .with::<crate::devices::virtio::block::BlockState>()
        .with::<crate::devices::virtio::net::NetState>()
        .with::<crate::devices::virtio::console::ConsoleState>()
        .with::<crate::devices::vfio::VfioState>()
        .with::<crate::cpr::exec::state::Journey>()
        .with::<crate::cpr::reboot::stamp::RamStamp>()
        .with::<crate::cpr::reboot::copy::RamCopyState>()
        .with::<crate::monitor::server::MonitorState>()
}
