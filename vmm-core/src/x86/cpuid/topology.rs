//! What differs between vCPUs: one socket, a core for each vCPU, one thread a core; the APIC id is the index.

use super::{CpuidEntry, LEAF_ADDRESS, LEAF_FEATURES};

/// Intel's and AMD's leaves of caches.
const LEAF_CACHE: [u32; 2] = [4, 0x8000_001d];
/// The leaves of extended topology, of which the second is the newer.
const LEAF_TOPOLOGY: [u32; 2] = [0xb, 0x1f];
/// AMD's leaf of a core's identity.
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;
/// The sub-leaf matters (`KVM_CPUID_FLAG_SIGNIFCANT_INDEX`).
const SIGNIFICANT_INDEX: u32 = 1;
/// Leaf 1 EDX: the package has several logical processors.
const HTT: u32 = 1 << 28;
/// A cache's level in EAX, and the one that all cores share.
const SHARED_CACHE_LEVEL: u32 = 3;

/// CPUID of the `index`th of `cpus` vCPUs.
pub fn for_vcpu(template: &[CpuidEntry], index: u16, cpus: u16) -> Vec<CpuidEntry> {
    let (id, cpus) = (u32::from(index), u32::from(cpus.max(1)));
    let ids = cpus.next_power_of_two();
    let id_bits = ids.trailing_zeros();
    let max_leaf = template.iter().find(|e| e.function == 0).map_or(0, |e| e.eax);
    let mut entries: Vec<_> =
        template.iter().filter(|e| !LEAF_TOPOLOGY.contains(&e.function)).copied().collect();
    for entry in &mut entries {
        match entry.function {
            LEAF_FEATURES => {
                entry.ebx = entry.ebx & 0xffff | ids.min(255) << 16 | id << 24;
                entry.edx = if cpus > 1 { entry.edx | HTT } else { entry.edx & !HTT };
            }
            leaf if LEAF_CACHE.contains(&leaf) && entry.eax & 0x1f != 0 => {
                let sharing = if entry.eax >> 5 & 7 >= SHARED_CACHE_LEVEL { ids } else { 1 };
                // AMD keeps the number of cores elsewhere.
                let cores = if leaf == 4 { (ids - 1).min(0x3f) << 26 } else { 0 };
                entry.eax = entry.eax & 0x3fff | (sharing - 1) << 14 | cores;
            }
            LEAF_ADDRESS => entry.ecx = entry.ecx & !0xf0ff | id_bits << 12 | (cpus - 1).min(0xff),
            LEAF_AMD_TOPOLOGY => (entry.eax, entry.ebx, entry.ecx) = (id, id & 0xff, 0),
            _ => {}
        }
    }
    for leaf in LEAF_TOPOLOGY.into_iter().filter(|leaf| *leaf <= max_leaf) {
        let level = |index, eax, ebx, kind: u32| CpuidEntry {
            function: leaf,
            index,
            flags: SIGNIFICANT_INDEX,
            eax,
            ebx,
            ecx: kind << 8 | index,
            edx: id,
        };
        // Threads of a core, cores of the package, no more.
        entries.extend([level(0, 0, 1, 1), level(1, id_bits, cpus, 2), level(2, 0, 0, 0)]);
    }
    entries
}
