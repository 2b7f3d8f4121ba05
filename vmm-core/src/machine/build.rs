//! Everything of a machine that can be made before its state is there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Kvm, VmFd};
use vm_device::bus::{PioAddress, PioRange};
use vm_device::device_manager::{IoManager, PioManager};

use super::backends::Backends;
use super::events::{EventSink, MachineEvent, notice_sink, request_sink};
use super::exits::Exits;
use super::irq::GsiLine;
use super::msi::MsiRoutes;
use super::pci;
use super::run_state::RunState;
use super::turn::Turns;
use super::{Machine, MachineError};
use crate::config::MachineConfig;
use crate::cpr::fds::FdTable;
use crate::devices::i8042::I8042;
use crate::devices::pci::PciBus;
use crate::devices::pm::{self, Pm};
use crate::devices::rtc::Rtc;
use crate::devices::serial::Serial;
use crate::devices::vfio::Mappings;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::{Device, DeviceError, Subscriber};
use crate::memory::{self, GuestRam, RamBlock};
use crate::vcpu::group::Vcpus;
use crate::vcpu::plan::{self, VcpuPlan};
use crate::vcpu::thread::{ExitHandler, VcpuThread};
use crate::x86::caps::HostCaps;
use crate::x86::irqchip::VmState;
use crate::x86::layout;
use crate::x86::platform::Platform;

/// The machine's devices.
pub struct Devices {
    /// COM1.
    pub serial: Arc<Serial>,
    /// ACPI power management.
    pub pm: Arc<Pm>,
    rtc: Arc<Rtc>,
    i8042: Arc<I8042>,
    /// The memory balloon, if there is one.
    pub balloon: Option<Arc<Balloon>>,
    /// Where the DMA of assigned devices goes.
    mappings: Vec<Mappings>,
    /// The bus that all others are on.
    pub(super) pci: Arc<PciBus>,
    /// Message-signalled interrupts.
    pub(super) msi: Arc<MsiRoutes>,
}

impl std::fmt::Debug for Devices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.all().map(Device::id)).finish()
    }
}

impl Devices {
    /// All of them, in the order in which they are stopped, saved and loaded.
    pub fn all(&self) -> impl Iterator<Item = &dyn Device> {
        let fixed: [&dyn Device; 4] = [&*self.serial, &*self.pm, &*self.rtc, &*self.i8042];
        let functions = self.pci.functions().map(|function| &**function as &dyn Device);
        let mappings = self.mappings.iter().map(|mappings| mappings as &dyn Device);
        fixed.into_iter().chain(mappings).chain(functions).chain([&*self.pci as &dyn Device])
    }

    /// What they have in the event loop.
    pub fn subscribers(&self) -> Vec<Subscriber> {
        let serial: Subscriber = Arc::new(Mutex::new(self.serial.subscriber()));
        let rtc: Subscriber = Arc::new(Mutex::new(self.rtc.subscriber()));
        let others = self.pci.functions().filter_map(|function| function.subscriber());
        [serial, rtc].into_iter().chain(others).collect()
    }

    /// The guest lives on elsewhere: dropping them leaves socket files and terminals as they are.
    pub fn hand_over(&self) {
        self.all().for_each(Device::hand_over);
    }

    fn new(
        vm: &Arc<VmFd>,
        ram_size: u64,
        ram: &GuestRam,
        loading: bool,
        backends: Backends,
        kept: Option<&mut FdTable>,
        events: &EventSink,
    ) -> Result<Self, DeviceError> {
        let line = |gsi| GsiLine::line(vm, gsi);
        let requests = request_sink(events);
        let msi = MsiRoutes::new(vm, loading);
        if let Some(balloon) = &backends.balloon {
            balloon.set_page_size(ram.page_size());
        }
        let memory = Arc::new(ram.memory().clone());
        let pm = Arc::new(Pm::new(line(layout::SCI_GSI), Arc::clone(&requests)));
        let received = pm.signal(pm::Event::Serial);
        let serial = Serial::new("serial0", line(layout::COM1_GSI), received, backends.serial);
        let port = Arc::downgrade(&serial);
        pm.on_return(Arc::new(move || {
            port.upgrade().iter().for_each(|port| port.interrupt_again());
        }));
        Ok(Self {
            balloon: backends.balloon,
            serial,
            rtc: Rtc::new(ram_size, line(layout::RTC_GSI), pm.signal(pm::Event::Alarm))?,
            pm,
            i8042: Arc::new(I8042::new(requests)),
            mappings: backends.spaces.mappings(&memory, loading)?,
            pci: Arc::new(pci::bus(
                vm,
                ram_size,
                backends.devices,
                &memory,
                &msi,
                notice_sink(events),
                kept,
            )?),
            msi,
        })
    }

    /// Registers the ports that do not move.
    fn register(&self, io: &mut IoManager) -> Result<(), MachineError> {
        let ports: [(u16, u16, Arc<dyn vm_device::DevicePio + Send + Sync>); 6] = [
            (layout::COM1_PORT, layout::COM1_PORTS, self.serial.clone()),
            (layout::PM1_EVENT_PORT, layout::PM1_PORTS, self.pm.clone()),
            (layout::GPE0_PORT, layout::GPE0_PORTS, self.pm.clone()),
            (layout::RESET_PORT, 1, self.pm.clone()),
            (layout::RTC_PORT, layout::RTC_PORTS, self.rtc.clone()),
            (layout::I8042_PORT, layout::I8042_PORTS, self.i8042.clone()),
        ];
        for (base, size, device) in ports {
            let range = PioRange::new(PioAddress(base), size);
            range.and_then(|range| io.register_pio(range, device)).map_err(|error| DeviceError::State {
                device: "io".into(),
                found: format!("ports {base:#x}..+{size}: {error}"),
                expected: "ports of its own for each device".into(),
            })?;
        }
        Ok(())
    }
}

/// What a machine is made from.
pub(super) struct Parts {
    pub(super) config: MachineConfig,
    /// What a guest that has lived was shown; none at a cold boot.
    pub(super) platform: Option<Platform>,
    pub(super) blocks: Vec<RamBlock>,
    pub(super) backends: Backends,
    pub(super) events: EventSink,
}

fn kvm(doing: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> MachineError {
    move |source| MachineError::Kvm { doing, source }
}

/// Puts a machine together: VM, interrupt chips, memory slots, vCPU threads, devices. Its vCPUs have no state yet.
/// `kept`: what was handed over and not taken yet.
pub(super) fn assemble(
    parts: Parts,
    state: RunState,
    kept: Option<&mut FdTable>,
) -> Result<Machine, MachineError> {
    let Parts { config, platform, blocks, backends, events } = parts;
    let kvm_fd = Kvm::new().map_err(kvm("opening /dev/kvm"))?;
    let host = HostCaps::probe(&kvm_fd)?;
    let mut platform = match platform {
        Some(platform) => {
            platform.check(&host, &config.cpu)?;
            platform
        }
        None => Platform::new(&host, &config.cpu, config.cpus)?,
    };
    let ram = map(&blocks)?;
    let vm = Arc::new(create_vm(&kvm_fd, &platform)?);
    // SAFETY: the machine owns both, and lets go of the VM and its vCPU threads before the mapping.
    unsafe { memory::set_slots(&vm, &ram) }?;

    let (ended, asleep) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
    let events = marking(events, &ended, &asleep);
    let loading = state == RunState::Inmigrate;
    let devices = Devices::new(&vm, config.memory.size.0, &ram, loading, backends, kept, &events)?;
    let mut io = IoManager::new();
    devices.register(&mut io)?;
    let exits: Arc<dyn ExitHandler> = Exits::new(io, Arc::clone(&devices.pci), events);
    let vcpus = create_vcpus(&vm, &host, &mut platform, &exits)?;
    let fresh_chips = VmState::save(&vm)?;
    Ok(Machine {
        config,
        platform,
        vcpus,
        fresh_chips,
        devices,
        arrival: None,
        ram,
        blocks,
        vm,
        state: Turns::new(state),
        ended,
        asleep,
        wake_due: AtomicBool::new(false),
        claim: Mutex::default(),
    })
}

/// Marks the machine as ended or asleep before its owner hears of it, so that it is not handed over as if it went on in between.
/// It falls asleep once, however often it says so.
fn marking(events: EventSink, ended: &Arc<AtomicBool>, asleep: &Arc<AtomicBool>) -> EventSink {
    let (ended, asleep) = (Arc::clone(ended), Arc::clone(asleep));
    Arc::new(move |event| {
        if event.ends_the_machine() {
            ended.store(true, Ordering::SeqCst);
        }
        if event != MachineEvent::Sleep || !asleep.swap(true, Ordering::SeqCst) {
            events(event);
        }
    })
}

fn map(blocks: &[RamBlock]) -> Result<GuestRam, MachineError> {
    let Some(ram) = blocks.first() else {
        return Err(DeviceError::State {
            device: memory::RAM.into(),
            found: "no RAM block".into(),
            expected: "one".into(),
        }
        .into());
    };
    let ranges: Vec<_> = layout::ram_ranges(ram.size())
        .into_iter()
        .map(|range| (range.guest, range.offset, range.size))
        .collect();
    let mut mapped = GuestRam::map(ram, &ranges)?;
    for rom in &blocks[1..] {
        mapped.map_rom(rom)?;
    }
    Ok(mapped)
}

fn create_vm(kvm_fd: &Kvm, platform: &Platform) -> Result<VmFd, MachineError> {
    let vm = kvm_fd.create_vm().map_err(kvm("KVM_CREATE_VM"))?;
    platform.caps.enable(&vm)?;
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP_START).map_err(kvm("KVM_SET_IDENTITY_MAP_ADDR"))?;
    vm.set_tss_address(layout::KVM_TSS_START as usize).map_err(kvm("KVM_SET_TSS_ADDR"))?;
    vm.create_irq_chip().map_err(kvm("KVM_CREATE_IRQCHIP"))?;
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(kvm("KVM_CREATE_PIT2"))?;
    Ok(vm)
}

fn create_vcpus(
    vm: &VmFd,
    host: &HostCaps,
    platform: &mut Platform,
    exits: &Arc<dyn ExitHandler>,
) -> Result<Vcpus, MachineError> {
    let (mut vcpus, mut host_tsc_khz) = (Vec::new(), 0);
    for index in 0..platform.cpuid.len() as u32 {
        let vcpu = vm.create_vcpu(index.into()).map_err(kvm("KVM_CREATE_VCPU"))?;
        host_tsc_khz = plan::prepare(index, &vcpu, platform)?;
        vcpus.push(vcpu);
    }
    let Some(first) = vcpus.first() else {
        return Err(crate::vcpu::group::VcpuError::Count { found: 0, expected: 1 }.into());
    };
    let plan = VcpuPlan::probe(vm, first, host, platform, host_tsc_khz)?;
    plan::tsc_advances(0, first, &plan)?;
    platform.tsc_khz = Some(plan.tsc_khz);
    let threads = vcpus
        .into_iter()
        .enumerate()
        .map(|(index, vcpu)| VcpuThread::spawn(index, vcpu, Arc::clone(exits)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(MachineError::Thread)?;
    Ok(Vcpus::new(threads, plan)?)
}
