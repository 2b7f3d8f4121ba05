//! All vCPUs of a guest.
//!
//! 1. They are stopped together: all are asked before any is waited for.
//! 2. States are read and written on the vCPUs' own threads, at the same time; the first on the caller's.
//! 3. For how long they stood the guest is told before they run again, whatever they stood for.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::GuestMemoryMmap;

use super::load;
use super::plan::VcpuPlan;
use super::save::{SavedMpState, VcpuSaver};
use super::standstill::{self, Standstill};
use super::state::{VcpuState, VcpuStateError};
use super::thread::{StopTimeout, VcpuThread};
use super::unhalt;
use crate::x86::boot::{self, BootEntry, BootError};
use crate::x86::clock::Resumption;
use crate::x86::platform::Platform;

/// For reading or writing one vCPU's state; a bound against a kernel that hangs, not an expectation.
const STATE_IO: Duration = Duration::from_secs(30);

/// Why an operation on the vCPUs failed.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// A vCPU did not stop in time.
    #[error(transparent)]
    Stop(#[from] StopTimeout),
    /// A vCPU's state could not be read or written.
    #[error(transparent)]
    State(#[from] VcpuStateError),
    /// A vCPU's thread ended without doing its work.
    #[error("the thread of vCPU {0} is gone")]
    Lost(usize),
    /// Saved state is of another number of vCPUs.
    #[error("saved state of {found} vCPUs; the guest has {expected}")]
    Count {
        /// In the state.
        found: usize,
        /// In the machine.
        expected: usize,
    },
}

/// Why vCPUs that had run could not be put at a start.
#[derive(Debug, thiserror::Error)]
pub enum RestartError {
    /// What they were made with could not be written.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// Where they were to start could not.
    #[error(transparent)]
    Boot(#[from] BootError),
}

/// All vCPUs of a guest.
#[derive(Debug)]
pub struct Vcpus {
    threads: Vec<VcpuThread>,
    savers: Vec<Arc<Mutex<VcpuSaver>>>,
    plan: Arc<VcpuPlan>,
    /// What each was made with.
    fresh: Vec<VcpuState>,
    /// Set while they are stopped, after they have run, here or elsewhere.
    stopped: Mutex<Option<Standstill>>,
}

/// What one vCPU's work came to, once it is done.
type Outcome<T> = Arc<Mutex<Option<Result<T, VcpuStateError>>>>;

impl Vcpus {
    /// Of parked threads, whose vCPUs have not run.
    pub fn new(threads: Vec<VcpuThread>, plan: VcpuPlan) -> Result<Self, VcpuError> {
        let plan = Arc::new(plan);
        let savers = (0..threads.len() as u32)
            .map(|index| Arc::new(Mutex::new(VcpuSaver::new(index, Arc::clone(&plan)))))
            .collect();
        let mut vcpus = Self { threads, savers, plan, fresh: Vec::new(), stopped: Mutex::new(None) };
        vcpus.fresh = vcpus.save_all()?;
        Ok(vcpus)
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.threads.len() as u32
    }

    /// The rate of the host's TSC in kHz.
    pub fn host_tsc_khz(&self) -> u32 {
        self.plan.host_tsc_khz
    }

    /// The rate of the guest's TSC in kHz.
    pub fn tsc_khz(&self) -> u32 {
        self.plan.tsc_khz
    }

    /// Puts every vCPU at the start of a cold boot.
    pub fn boot(&self, entry: &BootEntry) -> Result<(), BootError> {
        for (index, thread) in self.threads.iter().enumerate() {
            let vcpu = thread.vcpu();
            boot::setup_vcpu(entry, &vcpu)?;
            if index == 0 {
                boot::enter_at(entry, &vcpu)?;
            }
        }
        Ok(())
    }

    /// Puts every vCPU, parked, back where it was when it was made, but for its TSC, and the first at `entry`.
    pub fn restart(&self, entry: &BootEntry) -> Result<(), RestartError> {
        let work = self.fresh.iter().cloned().zip(0..).map(|(fresh, index)| {
            let plan = Arc::clone(&self.plan);
            move |vcpu: &mut VcpuFd| load::reset(index, vcpu, &fresh, &plan)
        });
        self.each(work)?;
        Ok(self.boot(entry)?)
    }

    /// The threads' ids in the kernel.
    pub fn thread_ids(&self) -> Vec<i32> {
        self.threads.iter().map(VcpuThread::tid).collect()
    }

    /// Stops all of them. After an error some may have stopped: [`Self::enter`] lets them go on.
    pub fn park(&self, deadline: Instant) -> Result<(), StopTimeout> {
        self.threads.iter().for_each(VcpuThread::request_stop);
        self.threads.iter().try_for_each(|thread| thread.wait_parked(deadline))?;
        lock(&self.stopped).get_or_insert_with(|| Standstill::after(Duration::ZERO));
        Ok(())
    }

    /// Says for how long the guest has stood that was loaded.
    pub fn have_stood(&self, time: Duration) {
        *lock(&self.stopped) = Some(Standstill::after(time));
    }

    /// Lets all of them run, once they were told for how long they stood.
    pub fn enter(&self, memory: &GuestMemoryMmap) {
        self.tell_of_stop(memory);
        self.run();
    }

    /// Lets all of them run, which were told already.
    pub fn run(&self) {
        *lock(&self.stopped) = None;
        self.threads.iter().for_each(VcpuThread::run);
    }

    /// Tells each vCPU that it was stopped, so that the guest's watchdogs do not mind, and for how long by now: of what comes after
    /// it is told the next time.
    pub fn tell_of_stop(&self, memory: &GuestMemoryMmap) {
        let anew = || Standstill::after(Duration::ZERO);
        let stopped = lock(&self.stopped).as_mut().map(|stopped| std::mem::replace(stopped, anew()));
        // If they are not all stopped, some may not be parked.
        let Some(stopped) = stopped else { return };
        for (index, thread) in self.threads.iter().enumerate() {
            standstill::tell(index, &thread.vcpu(), memory, &self.plan, stopped.time());
        }
    }

    /// Reads the state of all parked vCPUs.
    pub fn save_all(&self) -> Result<Vec<VcpuState>, VcpuError> {
        let marks = (self.threads.iter().zip(&self.savers))
            .map(|(thread, saver)| lock(saver).save_mp_state(&thread.vcpu()))
            .collect::<Result<Vec<SavedMpState>, _>>()?;
        let work = self.savers.iter().zip(marks).map(|(saver, mark)| {
            let saver = Arc::clone(saver);
            move |vcpu: &mut VcpuFd| lock(&saver).save(vcpu, mark)
        });
        self.each(work)
    }

    /// Writes the state of all vCPUs of a fresh VM.
    pub fn load_all(&self, states: Vec<VcpuState>, clock: &Resumption) -> Result<Vec<VcpuState>, VcpuError> {
        if states.len() != self.threads.len() {
            return Err(VcpuError::Count { found: states.len(), expected: self.threads.len() });
        }
        let work = states.into_iter().zip(0..).map(|(state, index)| {
            let (plan, clock) = (Arc::clone(&self.plan), clock.clone());
            move |vcpu: &mut VcpuFd| load::load(index, vcpu, &state, &plan, &clock).map(|()| state)
        });
        self.each(work)
    }

    /// Kicks those vCPUs whose state does not tell whether they were kicked.
    pub fn unhalt(&self, vm: &VmFd, states: &[VcpuState], platform: &Platform) -> Result<(), VcpuError> {
        for ((index, state), shown) in states.iter().enumerate().zip(&platform.cpuid) {
            unhalt::unhalt(index as u32, vm, state, shown)?;
        }
        Ok(())
    }

    /// What of a load waits for the VM's clock.
    pub fn after_clock(&self, states: &[VcpuState]) -> Result<(), VcpuError> {
        for (index, (thread, state)) in self.threads.iter().zip(states).enumerate() {
            load::after_clock(index as u32, &thread.vcpu(), state)?;
        }
        Ok(())
    }

    /// Does a piece of work with every parked vCPU: the first here, the others on their threads.
    fn each<T, W>(&self, work: impl Iterator<Item = W>) -> Result<Vec<T>, VcpuError>
    where
        T: Send + 'static,
        W: FnOnce(&mut VcpuFd) -> Result<T, VcpuStateError> + Send + 'static,
    {
        let deadline = Instant::now() + STATE_IO;
        let outcomes: Vec<Outcome<T>> = self.threads.iter().map(|_| Arc::default()).collect();
        let mut all = self.threads.iter().zip(&outcomes).zip(work);
        let first = all.next();
        let do_first = || {
            if let Some(((thread, outcome), work)) = first {
                *lock(outcome) = Some(work(&mut thread.vcpu()));
            }
        };
        let mut do_first = Some(do_first);
        // A vCPU whose TSC cannot be given as an offset follows the first: then the first goes before the others.
        if !self.plan.has_tsc_offset() {
            do_first.take().into_iter().for_each(|work| work());
        }
        for ((thread, outcome), work) in all {
            let outcome = Arc::clone(outcome);
            thread.submit(move |vcpu| *lock(&outcome) = Some(work(vcpu)));
        }
        if let Some(work) = do_first {
            work();
        }
        self.threads.iter().try_for_each(|thread| thread.wait_parked(deadline))?;
        let taken = outcomes.iter().enumerate().map(|(index, outcome)| {
            let done = lock(outcome).take();
            Ok(done.ok_or(VcpuError::Lost(index))??)
        });
        taken.collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
