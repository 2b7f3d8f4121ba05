//! What a guest is shown of a host, the same for all its vCPUs.

use super::{CpuidEntry, LEAF_FEATURES, LEAF_XSAVE, find};
use crate::x86::caps::HostCaps;
use crate::x86::features::Mask;

/// Features that are not shown: what belongs to the host's hardware (power, thermal, tracing), what KVM would need a
/// performance monitoring unit for, what this VMM keeps no state of (AMX tiles), what follows the guest's own control
/// registers, and a TSC that is promised never to change, which no guest that moves to another boot may be.
const HIDDEN: &[&str] = &[
    "monitor",
    "mwaitx",
    "dtes64",
    "ds_cpl",
    "dts",
    "acpi",
    "tm",
    "tm2",
    "pbe",
    "est",
    "smx",
    "xtpr",
    "pdcm",
    "dca",
    "pn",
    "osxsave",
    "ospke",
    "sgx",
    "sgx_lc",
    "sgx_keys",
    "intel_pt",
    "arch_lbr",
    "arch_perfmon_ext",
    "pconfig",
    "hybrid_cpu",
    "core_capabilities",
    "cqm",
    "rdt_a",
    "tme",
    "kl",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "amx_fp16",
    "amx_complex",
    "xfd",
    "ibs",
    "perfctr_core",
    "perfctr_nb",
    "perfctr_llc",
    "nonstop_tsc",
    "aperfmperf",
];

/// Features for guests that run guests of their own.
const NESTED: [&str; 2] = ["vmx", "svm"];

/// Leaves that are shown empty, for the same reasons: MWAIT, performance monitoring, SGX, processor trace, last branch
/// records, AMX tiles, instruction sampling, encrypted memory.
const EMPTY: [u32; 11] =
    [0x5, 0xa, 0x12, 0x14, 0x1c, 0x1d, 0x1e, 0x8000_001b, 0x8000_001f, 0x8000_0020, 0x8000_0022];

/// The leaf of SVM's features.
const LEAF_SVM: u32 = 0x8000_000a;

/// XSAVE components that are not shown: processor trace, last branch records, AMX tiles.
const HIDDEN_COMPONENTS: u64 = 1 << 8 | 1 << 15 | 0b11 << 17;

const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;

/// What this host has: what KVM supports, with what its interrupt chip adds, without what the mask names.
pub(super) fn offered(host: &HostCaps, mask: &Mask) -> Vec<CpuidEntry> {
    let mut entries = host.supported_cpuid.clone();
    for entry in entries.iter_mut().filter(|e| e.function == LEAF_FEATURES) {
        // KVM's answer says nothing of these on older kernels; the in-kernel LAPIC has them.
        entry.ecx |= HYPERVISOR | X2APIC | if host.tsc_deadline { TSC_DEADLINE } else { 0 };
    }
    hide(&mut entries, mask, mask.components());
    entries
}

/// What a guest that boots on this host is shown. `nested` shows VMX or SVM.
pub fn template(host: &HostCaps, mask: &Mask, nested: bool) -> Vec<CpuidEntry> {
    let mut entries = offered(host, mask);
    let hidden: Vec<&str> = HIDDEN.iter().chain(NESTED.iter().filter(|_| !nested)).copied().collect();
    let hidden = Mask::parse(&hidden).unwrap_or_else(|e| unreachable!("{e}"));
    hide(&mut entries, &hidden, HIDDEN_COMPONENTS);
    let empty = |leaf| EMPTY.contains(&leaf) || (!nested && leaf == LEAF_SVM);
    entries.iter_mut().filter(|e| empty(e.function)).for_each(CpuidEntry::clear);
    entries
}

/// Takes features and XSAVE components out.
fn hide(entries: &mut [CpuidEntry], mask: &Mask, components: u64) {
    mask.hide(entries);
    let (low, high) = (components as u32, (components >> 32) as u32);
    for entry in entries.iter_mut().filter(|e| e.function == LEAF_XSAVE) {
        match entry.index {
            0 => {
                entry.eax &= !low;
                entry.edx &= !high;
            }
            1 => {
                entry.ecx &= !low;
                entry.edx &= !high;
            }
            n if n < 64 && components >> n & 1 == 1 => entry.clear(),
            _ => {}
        }
    }
    let size = xsave_size(entries);
    for entry in entries.iter_mut().filter(|e| e.function == LEAF_XSAVE && e.index == 0) {
        entry.ecx = size;
    }
}

/// XSAVE components that XCR0 can enable.
pub(super) fn xcr0(entries: &[CpuidEntry]) -> u64 {
    find(entries, LEAF_XSAVE, 0).map_or(0, |e| u64::from(e.eax) | u64::from(e.edx) << 32)
}

/// XSAVE components that IA32_XSS can enable.
pub(super) fn xss(entries: &[CpuidEntry]) -> u64 {
    find(entries, LEAF_XSAVE, 1).map_or(0, |e| u64::from(e.ecx) | u64::from(e.edx) << 32)
}

/// Bytes of an XSAVE area, in the standard format, with all that XCR0 can enable.
fn xsave_size(entries: &[CpuidEntry]) -> u32 {
    let xcr0 = xcr0(entries);
    // The legacy area and the header are always there.
    let start = if xcr0 == 0 { 0 } else { 576 };
    let shown = entries
        .iter()
        .filter(|e| e.function == LEAF_XSAVE && (2..64).contains(&e.index) && xcr0 >> e.index & 1 == 1);
    shown.fold(start, |size, e| size.max(e.ebx.saturating_add(e.eax)))
}
