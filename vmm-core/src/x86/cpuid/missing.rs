//! What a host lacks of what a guest was shown.

use super::template::{offered, xcr0, xss};
use super::{CpuidEntry, LEAF_ADDRESS, LEAF_FEATURES, LEAF_XSAVE, Register, find};
use crate::x86::caps::HostCaps;
use crate::x86::features::{Mask, WORDS};

/// Bits that follow what the guest does or what its topology is, not what the host has: HT, OSXSAVE, OSPKE.
const FOLLOWING: [(u32, Register, u32); 3] = [
    (LEAF_FEATURES, Register::Edx, 1 << 28),
    (LEAF_FEATURES, Register::Ecx, 1 << 27),
    (7, Register::Ecx, 1 << 4),
];

/// Names what the guest was shown and this host lacks, taken that it lacks what the mask names: features, XSAVE
/// components and their places, address widths, the vendor. Empty if the guest can run here.
pub fn missing_features(shown: &[CpuidEntry], host: &HostCaps, mask: &Mask) -> Vec<String> {
    let here = offered(host, mask);
    let mut missing = Vec::new();
    let (was, is) = (vendor(shown), vendor(&here));
    if was != is {
        missing.push(format!("a processor by {was} (here: {is})"));
    }
    for word in &WORDS {
        let following =
            FOLLOWING.iter().filter(|(leaf, register, _)| (*leaf, *register) == (word.leaf, word.register));
        let ignored = if word.subleaf == 0 { following.fold(0, |all, (.., bits)| all | bits) } else { 0 };
        let lacks = word.of(shown) & !word.of(&here) & !ignored;
        for name in (0..32).filter(|bit| lacks >> bit & 1 == 1).map(|bit| word.bit_name(bit)) {
            // AMD tells some features twice.
            if !missing.contains(&name) {
                missing.push(name);
            }
        }
    }
    missing_components(shown, &here, &mut missing);
    for (name, shift) in [("physical", 0), ("linear", 8)] {
        let width = |entries| find(entries, LEAF_ADDRESS, 0).map_or(0, |e| e.eax >> shift & 0xff);
        let (was, is) = (width(shown), width(&here));
        if was > is {
            missing.push(format!("{was} bits of {name} address (here: {is})"));
        }
    }
    missing
}

fn missing_components(shown: &[CpuidEntry], here: &[CpuidEntry], missing: &mut Vec<String>) {
    let (was, is) = (xcr0(shown) | xss(shown), xcr0(here) | xss(here));
    for component in (0..64).filter(|n| was >> n & 1 == 1) {
        let place = |entries| find(entries, LEAF_XSAVE, component).map(|e| (e.eax, e.ebx));
        if is >> component & 1 == 0 {
            missing.push(format!("xsave component {component}"));
        } else if component > 1 && place(shown) != place(here) {
            missing.push(format!("xsave component {component} at the same place"));
        }
    }
}

fn vendor(entries: &[CpuidEntry]) -> String {
    let Some(entry) = find(entries, 0, 0) else { return "nobody".into() };
    let bytes = [entry.ebx, entry.edx, entry.ecx].map(u32::to_le_bytes).concat();
    bytes.iter().map(|b| if b.is_ascii_graphic() { *b as char } else { '?' }).collect()
}
