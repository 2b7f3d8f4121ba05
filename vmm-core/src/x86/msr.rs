//! Model-specific registers: which are a vCPU's state, and reading and writing them in one go.
//!
//! 1. The list is KVM's own, and what it leaves out (MTRRs, machine check banks), less what is not state of this guest's.
//! 2. It is probed once a VM: a register that the host lists but cannot read is not found out about in the downtime.
//! 3. The order is one in which they can be written. What a fresh vCPU has anyway is not written.

use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;

use super::caps::{HostCaps, VmCaps};
use crate::vcpu::state::Msr;

/// The time stamp counter: saved as an offset, not as a register.
pub const IA32_TSC: u32 = 0x10;
/// The LAPIC timer's deadline: written after the LAPIC.
pub const IA32_TSC_DEADLINE: u32 = 0x6e0;
/// Where the guest wants the wall clock of its boot: written after the VM's clock, since KVM writes the page then.
pub const KVM_WALL_CLOCK: u32 = 0x4b56_4d00;
/// Where the guest wants to be told of the time that was stolen from a vCPU.
pub const KVM_STEAL_TIME: u32 = 0x4b56_4d03;
/// Where asynchronous page faults are told.
const KVM_ASYNC_PF_EN: u32 = 0x4b56_4d02;
/// The interrupt for it.
const KVM_ASYNC_PF_INT: u32 = 0x4b56_4d06;

/// The older names of KVM's wall clock and system time: the same registers.
const ALIASES: [(u32, u32); 2] = [(0x11, KVM_WALL_CLOCK), (0x12, 0x4b56_4d01)];

/// Registers of what the guest is not shown: Hyper-V's, and the performance counters of Intel and AMD.
const NOT_SHOWN: [std::ops::RangeInclusive<u32>; 12] = [
    0x4000_0000..=0x4000_01ff,
    0xc1..=0xc8,
    0x186..=0x18d,
    0x309..=0x30c,
    0x345..=0x345,
    0x38d..=0x390,
    0x3f1..=0x3f2,
    0x4c1..=0x4c8,
    0x600..=0x600,
    0xc001_0000..=0xc001_0007,
    0xc001_0200..=0xc001_020b,
    0xc000_0300..=0xc000_0303,
];

/// Why a register could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MsrError {
    /// The ioctl failed as a whole.
    #[error("{ioctl}: {source}")]
    Ioctl {
        /// `KVM_GET_MSRS` or `KVM_SET_MSRS`.
        ioctl: &'static str,
        /// What the kernel answered.
        source: errno::Error,
    },
    /// One register could not be read.
    #[error("KVM_GET_MSRS: MSR {0:#x} cannot be read")]
    Read(u32),
    /// One register does not take the value.
    #[error("KVM_SET_MSRS: MSR {index:#x} does not take {value:#x}{}", .here.map_or(" and is unknown here".into(), |v| format!("; it is {v:#x} here")))]
    Write {
        /// Which.
        index: u32,
        /// What was saved.
        value: u64,
        /// What it is on this host, if it can be read.
        here: Option<u64>,
    },
}

/// The registers that are saved, in the order in which they are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MsrPlan {
    indices: Vec<u32>,
    /// What a fresh vCPU has in them, by index.
    fresh: Vec<(u32, u64)>,
}

impl MsrPlan {
    /// Finds the registers that can be read from this vCPU (fresh, with its CPUID).
    pub fn probe(vcpu: &VcpuFd, host: &HostCaps, caps: &VmCaps) -> Result<Self, errno::Error> {
        let mut indices = candidates(&host.msrs, caps.mcg_cap);
        let mut fresh = Vec::with_capacity(indices.len());
        while !indices.is_empty() {
            let chunk = &indices[..indices.len().min(KVM_MAX_MSR_ENTRIES)];
            let mut values = to_msrs(chunk.iter().map(|index| (*index, 0)));
            let count = vcpu.get_msrs(&mut values)?.min(chunk.len());
            fresh.extend(values.as_slice()[..count].iter().map(|entry| (entry.index, entry.data)));
            // The one after the last that was read cannot be.
            let done = if count < chunk.len() { count + 1 } else { count };
            indices.drain(..done);
        }
        let indices = fresh.iter().map(|(index, _)| *index).collect();
        fresh.sort_unstable();
        Ok(Self { indices, fresh })
    }

    /// Whether a fresh vCPU has this value.
    pub fn is_fresh(&self, msr: &Msr) -> bool {
        self.fresh.binary_search(&(msr.index, msr.value)).is_ok()
    }

    /// Whether this host has the register.
    pub fn has(&self, index: u32) -> bool {
        self.fresh.binary_search_by_key(&index, |(index, _)| *index).is_ok()
    }

    /// Which registers are saved.
    pub fn indices(&self) -> &[u32] {
        &self.indices
    }

    /// What [`read`] reads into.
    pub fn buffers(&self) -> Vec<Msrs> {
        self.indices
            .chunks(KVM_MAX_MSR_ENTRIES)
            .map(|chunk| to_msrs(chunk.iter().map(|index| (*index, 0))))
            .collect()
    }
}

/// What may be a vCPU's state, given KVM's list.
fn candidates(listed: &[u32], mcg_cap: u64) -> Vec<u32> {
    let mut all: Vec<u32> = Vec::with_capacity(listed.len() + 96);
    let mut add = |index: u32| {
        if !all.contains(&index) {
            all.push(index);
        }
    };
    let skipped = |index: &u32| {
        *index == IA32_TSC
            || NOT_SHOWN.iter().any(|range| range.contains(index))
            || ALIASES.iter().any(|(old, new)| old == index && listed.contains(new))
    };
    listed.iter().filter(|index| !skipped(index)).copied().for_each(&mut add);
    // Memory types: variable, fixed, and what enables them last.
    (0x200..0x210).chain([0x250, 0x258, 0x259]).chain(0x268..0x270).chain([0x2ff]).for_each(&mut add);
    for bank in 0..(mcg_cap & 0xff) as u32 {
        (0x400 + 4 * bank..0x404 + 4 * bank).chain([0x280 + bank]).for_each(&mut add);
    }
    // Enabling asynchronous page faults wakes those who wait, which needs the interrupt.
    if let Some(position) = all.iter().position(|index| *index == KVM_ASYNC_PF_EN)
        && all.contains(&KVM_ASYNC_PF_INT)
    {
        let index = all.remove(position);
        all.push(index);
    }
    all
}

/// KVM's form of at most [`KVM_MAX_MSR_ENTRIES`] registers.
fn to_msrs(entries: impl Iterator<Item = (u32, u64)>) -> Msrs {
    let entries: Vec<_> = entries
        .take(KVM_MAX_MSR_ENTRIES)
        .map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() })
        .collect();
    Msrs::from_entries(&entries).unwrap_or_else(|_| unreachable!("at most KVM_MAX_MSR_ENTRIES were taken"))
}

/// Reads all registers of a plan's buffers: one ioctl for 256.
pub fn read(vcpu: &VcpuFd, buffers: &mut [Msrs]) -> Result<Vec<Msr>, MsrError> {
    let mut values = Vec::with_capacity(buffers.iter().map(|b| b.as_slice().len()).sum());
    for buffer in buffers {
        let count =
            vcpu.get_msrs(buffer).map_err(|source| MsrError::Ioctl { ioctl: "KVM_GET_MSRS", source })?;
        if let Some(unread) = buffer.as_slice().get(count) {
            return Err(MsrError::Read(unread.index));
        }
        values.extend(buffer.as_slice().iter().map(|entry| Msr { index: entry.index, value: entry.data }));
    }
    Ok(values)
}

/// Reads one register.
pub fn read_one(vcpu: &VcpuFd, index: u32) -> Result<u64, MsrError> {
    let mut one = to_msrs(std::iter::once((index, 0)));
    match vcpu.get_msrs(&mut one) {
        Ok(1) => Ok(one.as_slice()[0].data),
        Ok(_) => Err(MsrError::Read(index)),
        Err(source) => Err(MsrError::Ioctl { ioctl: "KVM_GET_MSRS", source }),
    }
}

/// Writes registers in this order, 256 with one ioctl.
///
/// One that is refused is no error if it already has the value, or if the value is 0: a register that this host does not
/// have, and that the guest did not use.
pub fn write<'a>(vcpu: &VcpuFd, msrs: impl Iterator<Item = &'a Msr>) -> Result<(), MsrError> {
    let all: Vec<Msr> = msrs.copied().collect();
    let mut rest = all.as_slice();
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(KVM_MAX_MSR_ENTRIES)];
        let count = vcpu
            .set_msrs(&to_msrs(chunk.iter().map(|msr| (msr.index, msr.value))))
            .map_err(|source| MsrError::Ioctl { ioctl: "KVM_SET_MSRS", source })?;
        let Some(refused) = chunk.get(count) else {
            rest = &rest[chunk.len()..];
            continue;
        };
        let here = read_one(vcpu, refused.index).ok();
        if here != Some(refused.value) && refused.value != 0 {
            return Err(MsrError::Write { index: refused.index, value: refused.value, here });
        }
        rest = &rest[count + 1..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_has_what_kvm_leaves_out_and_lacks_what_is_not_state() {
        let all = candidates(
            &[0x10, 0x12, 0x174, 0x4b564d01, KVM_ASYNC_PF_EN, KVM_ASYNC_PF_INT, 0x40000020, 0xc1],
            2,
        );
        for index in [0x200, 0x20f, 0x250, 0x26f, 0x2ff, 0x400, 0x407, 0x281, 0x174, 0x4b564d01] {
            assert!(all.contains(&index), "{index:#x}");
        }
        for index in [IA32_TSC, 0x12, 0x40000020, 0xc1, 0x408] {
            assert!(!all.contains(&index), "{index:#x}");
        }
        let at = |index| all.iter().position(|i| *i == index).unwrap();
        assert!(at(KVM_ASYNC_PF_INT) < at(KVM_ASYNC_PF_EN));
    }
}
