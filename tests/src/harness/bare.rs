//! The smallest machine that runs a test guest: it shows what a guest does with no handover and no product around it.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::Context;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::ram::Ram;

/// A machine with RAM, a ROM, in-kernel interrupt chips and nothing else. Ends its vCPUs on drop.
pub struct BareMachine {
    /// Its RAM.
    pub ram: Ram,
    serial: Arc<Mutex<Vec<u8>>>,
    stop: Arc<AtomicBool>,
    vcpus: Vec<JoinHandle<io::Result<()>>>,
    _rom: Ram,
    _vm: VmFd,
}

/// The serial port's data register.
const COM1: u16 = 0x3f8;
/// Its line status: here always ready to send, and nothing to read.
const LINE_STATUS: u16 = 0x3fd;

extern "C" fn nothing(_: libc::c_int) {}

impl BareMachine {
    /// Starts `image` with `cpus` vCPUs.
    pub fn start(image: &[u8], cpus: u8, ram_size: u64) -> anyhow::Result<Self> {
        let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing, so it is safe at any time.
        unsafe { sigaction(Signal::SIGUSR1, &action) }.context("installing the kick's handler")?;
        let kvm = Kvm::new().context("opening /dev/kvm")?;
        let vm = kvm.create_vm().context("creating a VM")?;
        vm.set_tss_address(0xfffb_d000).context("placing the TSS")?;
        vm.create_irq_chip().context("creating the interrupt chips")?;
        vm.create_pit2(kvm_pit_config::default()).context("creating the PIT")?;
        let ram = Ram::anonymous("bare.ram", ram_size)?;
        let rom = Ram::anonymous("bare.rom", image.len() as u64)?;
        rom.write(0, image);
        for (slot, guest, block) in [(0, 0, &ram), (1, (1 << 32) - image.len() as u64, &rom)] {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: guest,
                memory_size: block.len(),
                userspace_addr: block.address(),
            };
            // SAFETY: the mappings live as long as the machine, whose vCPUs end before they are unmapped.
            unsafe { vm.set_user_memory_region(region) }.context("setting a memory slot")?;
        }
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("reading the CPUID")?;
        let stop = Arc::new(AtomicBool::new(false));
        let serial = Arc::new(Mutex::new(Vec::new()));
        let fds = (0..cpus)
            .map(|id| {
                let vcpu = vm.create_vcpu(u64::from(id)).context("creating a vCPU")?;
                vcpu.set_cpuid2(&with_apic_id(&cpuid, id)?).context("setting the CPUID")?;
                Ok(vcpu)
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        let vcpus = fds
            .into_iter()
            .map(|vcpu| {
                let (stop, serial) = (stop.clone(), serial.clone());
                std::thread::spawn(move || run(vcpu, &stop, &serial))
            })
            .collect();
        Ok(Self { ram, serial, stop, vcpus, _rom: rom, _vm: vm })
    }

    /// What the guest wrote to its serial port.
    pub fn serial_output(&self) -> Vec<u8> {
        self.serial.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What ended a vCPU, if one ended.
    pub fn failure(&mut self) -> Option<io::Error> {
        let ended = self.vcpus.iter().position(JoinHandle::is_finished)?;
        self.vcpus.remove(ended).join().ok()?.err()
    }
}

impl Drop for BareMachine {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.vcpus.drain(..) {
            while !thread.is_finished() {
                // SAFETY: a thread that ends meanwhile is not yet joined, so its id stands.
                unsafe { libc::pthread_kill(thread.as_pthread_t(), libc::SIGUSR1) };
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            let _ = thread.join();
        }
    }
}

fn with_apic_id(cpuid: &CpuId, id: u8) -> anyhow::Result<CpuId> {
    let mut entries = cpuid.as_slice().to_vec();
    for entry in &mut entries {
        match entry.function {
            1 => entry.ebx = entry.ebx & 0x00ff_ffff | u32::from(id) << 24,
            0xb | 0x1f => entry.edx = u32::from(id),
            _ => {}
        }
    }
    CpuId::from_entries(&entries).map_err(|e| anyhow::anyhow!("CPUID table: {e:?}"))
}

fn run(mut vcpu: VcpuFd, stop: &AtomicBool, serial: &Mutex<Vec<u8>>) -> io::Result<()> {
    while !stop.load(Ordering::Relaxed) {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(COM1, data)) => {
                serial.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(data);
            }
            Ok(VcpuExit::IoIn(LINE_STATUS, data)) => data.fill(0x60),
            Ok(VcpuExit::IoIn(_, data) | VcpuExit::MmioRead(_, data)) => data.fill(0xff),
            Ok(VcpuExit::IoOut(..) | VcpuExit::MmioWrite(..) | VcpuExit::Intr) => {}
            Ok(other) => {
                let what = format!("{other:?}");
                let regs = vcpu.get_regs()?;
                return Err(io::Error::other(format!("{what} at {:#x} {regs:x?}", regs.rip)));
            }
            Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
