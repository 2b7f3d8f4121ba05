//! The vCPU thread: runs the guest, or is parked.
//!
//! 1. A thread parks only after `KVM_RUN` has returned `EINTR`: its vCPU owes the guest nothing (see [`super::kick`]).
//! 2. While it is parked, its vCPU's state can be read and written, by the thread itself ([`VcpuThread::submit`]) or by
//!    whoever holds [`VcpuThread::vcpu`].
//! 3. Stopping is bounded: a thread that does not park by the deadline is an error that names it.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use kvm_bindings::kvm_run;
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::kick::{self, Kick};

/// Serves what the guest does to the outside: port and memory-mapped accesses, and the exits that end a run.
pub trait ExitHandler: Send + Sync {
    /// The guest reads a port.
    fn port_read(&self, port: u16, data: &mut [u8]);
    /// The guest writes a port.
    fn port_write(&self, port: u16, data: &[u8]);
    /// The guest reads an address where nothing is mapped.
    fn mmio_read(&self, address: u64, data: &mut [u8]);
    /// The guest writes an address where nothing is mapped.
    fn mmio_write(&self, address: u64, data: &[u8]);
    /// The guest shut its vCPU down (triple fault).
    fn shutdown(&self, vcpu: usize);
    /// KVM cannot go on with this vCPU.
    fn failed(&self, vcpu: usize, why: String);
}

/// A piece of work for a parked vCPU's own thread.
type Job = Box<dyn FnOnce(&mut VcpuFd) + Send>;

enum Command {
    Run,
    Work(Job),
    Quit,
}

#[derive(Default)]
struct Slot {
    command: Option<Command>,
    busy: bool,
}

struct Shared {
    slot: Mutex<Slot>,
    changed: Condvar,
    tid: AtomicI32,
    vcpu: Mutex<VcpuFd>,
    kick: Kick,
}

/// One vCPU and its thread.
pub struct VcpuThread {
    index: usize,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for VcpuThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VcpuThread({})", self.index)
    }
}

/// A vCPU did not stop in time.
#[derive(Debug, thiserror::Error)]
#[error("stopping the guest: vCPU {0} did not leave the guest before the deadline")]
pub struct StopTimeout(pub usize);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VcpuThread {
    /// Starts the thread of `vcpu`, parked.
    pub fn spawn(index: usize, mut vcpu: VcpuFd, exits: Arc<dyn ExitHandler>) -> io::Result<Self> {
        let kick = Kick::new(&mut vcpu);
        kick.set();
        let shared = Arc::new(Shared {
            slot: Mutex::default(),
            changed: Condvar::new(),
            tid: AtomicI32::new(0),
            vcpu: Mutex::new(vcpu),
            kick,
        });
        let thread = std::thread::Builder::new().name(format!("vcpu{index}")).spawn({
            let shared = Arc::clone(&shared);
            move || serve(index, &shared, &*exits)
        })?;
        Ok(Self { index, shared, thread: Some(thread) })
    }

    /// Lets the vCPU run. Does nothing when it runs.
    pub fn run(&self) {
        if !self.shared.kick.is_set() {
            return;
        }
        self.shared.kick.clear();
        self.send(Command::Run);
    }

    /// Asks the vCPU to leave the guest; [`Self::wait_parked`] waits until it has.
    pub fn request_stop(&self) {
        self.shared.kick.set();
        let tid = self.shared.tid.load(Ordering::SeqCst);
        if tid != 0 && lock(&self.shared.slot).busy {
            kick::interrupt(tid);
        }
    }

    /// Waits until the thread is parked.
    pub fn wait_parked(&self, deadline: Instant) -> Result<(), StopTimeout> {
        let mut slot = lock(&self.shared.slot);
        while slot.busy || slot.command.is_some() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(StopTimeout(self.index));
            }
            slot = self.shared.changed.wait_timeout(slot, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// The thread's id in the kernel; 0 before it has started.
    pub fn tid(&self) -> i32 {
        self.shared.tid.load(Ordering::SeqCst)
    }

    /// Gives the parked thread a piece of work with its vCPU; [`Self::wait_parked`] waits for its end.
    pub fn submit(&self, job: impl FnOnce(&mut VcpuFd) + Send + 'static) {
        self.send(Command::Work(Box::new(job)));
    }

    /// The parked vCPU. While the guest runs this waits for it to stop, so it is only asked for when it is parked.
    pub fn vcpu(&self) -> MutexGuard<'_, VcpuFd> {
        lock(&self.shared.vcpu)
    }

    fn send(&self, command: Command) {
        lock(&self.shared.slot).command = Some(command);
        self.shared.changed.notify_all();
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        self.request_stop();
        self.send(Command::Quit);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of vCPU {} panicked", self.index);
        }
    }
}

fn serve(index: usize, shared: &Shared, exits: &dyn ExitHandler) {
    // SAFETY: gettid has no arguments.
    let tid = unsafe { libc::syscall(libc::SYS_gettid) };
    shared.tid.store(tid as i32, Ordering::SeqCst);
    if let Err(error) = kick::unblock_here() {
        exits.failed(index, format!("unblocking the signal that stops it: {error}"));
    }
    loop {
        let command = {
            let mut slot = lock(&shared.slot);
            slot.busy = false;
            shared.changed.notify_all();
            loop {
                if let Some(command) = slot.command.take() {
                    slot.busy = true;
                    break command;
                }
                slot = shared.changed.wait(slot).unwrap_or_else(PoisonError::into_inner);
            }
        };
        match command {
            Command::Run => run_guest(index, &mut lock(&shared.vcpu), &shared.kick, exits),
            Command::Work(job) => job(&mut lock(&shared.vcpu)),
            Command::Quit => return,
        }
    }
}

/// Runs until a kick has taken effect, or until the vCPU can run no more.
fn run_guest(index: usize, vcpu: &mut VcpuFd, kick: &Kick, exits: &dyn ExitHandler) {
    let run: *const kvm_run = vcpu.get_kvm_run();
    // An instruction that repeats itself (INS, OUTS) exits once for several accesses to the same port.
    // SAFETY: the vCPU keeps the page mapped, and after such an exit this part of it holds.
    let width = || usize::from(unsafe { (*run).__bindgen_anon_1.io.size }).max(1);
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                data.chunks_mut(width()).for_each(|data| exits.port_read(port, data));
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                data.chunks(width()).for_each(|data| exits.port_write(port, data));
            }
            Ok(VcpuExit::MmioRead(address, data)) => exits.mmio_read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => exits.mmio_write(address, data),
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt) => {}
            Ok(VcpuExit::Shutdown) => return exits.shutdown(index),
            Ok(exit) => {
                let why = format!("unexpected exit {exit:?}");
                return exits.failed(index, why);
            }
            Err(error) => match error.errno() {
                libc::EINTR if kick.is_set() => return,
                libc::EINTR | libc::EAGAIN => {}
                _ => return exits.failed(index, format!("KVM_RUN: {error}")),
            },
        }
    }
}
