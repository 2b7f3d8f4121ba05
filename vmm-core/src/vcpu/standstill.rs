//! That a guest stood, told to its kernel, and for how long.
//!
//! 1. Its watchdogs are told by KVM, in the page of its clock (`KVM_KVMCLOCK_CTRL`).
//! 2. Its clocks go on while it stands, and its scheduler would charge that time to whoever ran just then: an ordinary task then waits
//!    until each other that wants to run has had as much. A kernel that subtracts what its hypervisor has taken from it (Linux with
//!    `CONFIG_PARAVIRT_TIME_ACCOUNTING`) charges nobody. It reads that from KVM's steal time (`Documentation/virt/kvm/x86/msr.rst`), to
//!    which KVM itself adds only what a vCPU's thread waited for a processor, and not the time for which the thread was parked, or
//!    there was none.
//! 3. That must never be more than what the guest's clocks went on by: an older kernel keeps what is too much, and takes it off the time
//!    after.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::plan::VcpuPlan;
use crate::x86::msr::{self, KVM_STEAL_TIME, MsrError};

/// In the register: whether the guest wants to be told. The bits up to the address's are reserved.
const ENABLED: u64 = 1;
const ADDRESS: u64 = !0x3f;

/// Since when vCPUs stand, and for how long they had stood before that.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standstill {
    since: Instant,
    before: Duration,
}

impl Standstill {
    /// One that began just now, after another.
    pub fn after(before: Duration) -> Self {
        Self { since: Instant::now(), before }
    }

    /// All of it.
    pub fn time(&self) -> Duration {
        self.before + self.since.elapsed()
    }
}

/// Why a guest could not be told.
#[derive(Debug, thiserror::Error)]
enum StealError {
    /// Where it wants to be told could not be asked.
    #[error(transparent)]
    Msr(#[from] MsrError),
    /// It has no RAM there.
    #[error("its steal time is at {at:#x}: {source}")]
    Memory {
        /// Where, by the guest.
        at: u64,
        /// What is wrong with that.
        source: GuestMemoryError,
    },
}

/// Tells a vCPU, which is parked, that it stood, and for how long. What cannot be told is logged: the guest goes on in any case.
pub fn tell(index: usize, vcpu: &VcpuFd, memory: &GuestMemoryMmap, plan: &VcpuPlan, time: Duration) {
    // A vCPU without kvmclock cannot be told: EINVAL.
    if let Err(error) = vcpu.kvmclock_ctrl()
        && error.errno() != libc::EINVAL
    {
        tracing::warn!("telling vCPU {index} that it was stopped: {error}");
    }
    if plan.msrs.has(KVM_STEAL_TIME)
        && let Err(error) = add(vcpu, memory, time)
    {
        tracing::warn!("telling the guest for how long vCPU {index} stood: {error}");
    }
}

/// Adds to what a vCPU's guest counts as stolen, if it wants to know.
fn add(vcpu: &VcpuFd, memory: &GuestMemoryMmap, time: Duration) -> Result<(), StealError> {
    add_at(msr::read_one(vcpu, KVM_STEAL_TIME)?, memory, time)
}

fn add_at(register: u64, memory: &GuestMemoryMmap, time: Duration) -> Result<(), StealError> {
    if register & ENABLED == 0 {
        return Ok(());
    }
    // The first field of `struct kvm_steal_time` is what was stolen, in ns. Nobody else writes it while the vCPU is parked.
    let at = register & ADDRESS;
    let stolen = GuestAddress(at);
    let so_far: u64 =
        memory.load(stolen, Ordering::Relaxed).map_err(|source| StealError::Memory { at, source })?;
    let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    memory
        .store(so_far.wrapping_add(time), stolen, Ordering::Relaxed)
        .map_err(|source| StealError::Memory { at, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap()
    }

    #[test]
    fn time_is_added_where_the_guest_has_said() {
        let memory = memory();
        memory.write_obj(5_u64, GuestAddress(0x1040)).unwrap();
        add_at(0x1041, &memory, Duration::from_micros(3)).unwrap();
        assert_eq!(memory.read_obj::<u64>(GuestAddress(0x1040)).unwrap(), 3_005);
        assert_eq!(memory.read_obj::<u64>(GuestAddress(0x1048)).unwrap(), 0);
    }

    #[test]
    fn a_guest_that_has_not_asked_is_left_alone() {
        let memory = memory();
        add_at(0x1040, &memory, Duration::from_secs(1)).unwrap();
        assert_eq!(memory.read_obj::<u64>(GuestAddress(0x1040)).unwrap(), 0);
    }

    #[test]
    fn whatever_a_guest_has_written_is_no_trouble() {
        let memory = memory();
        for register in [0x4001, !0x3e, u64::MAX] {
            let error = add_at(register, &memory, Duration::from_secs(1)).unwrap_err();
            assert!(error.to_string().starts_with("its steal time is at 0x"), "{error}");
        }
        memory.write_obj(u64::MAX, GuestAddress(0x3fc0)).unwrap();
        add_at(0x3fc1, &memory, Duration::from_nanos(2)).unwrap();
        assert_eq!(memory.read_obj::<u64>(GuestAddress(0x3fc0)).unwrap(), 1);
    }
}
