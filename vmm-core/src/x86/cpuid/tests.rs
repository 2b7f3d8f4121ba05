//! CPUID decisions on made-up hosts.

use super::template::xcr0;
use super::*;
use crate::x86::caps::{HostCaps, VmCaps};

fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
    CpuidEntry { function, index, eax, ebx, ecx, edx, ..Default::default() }
}

/// A host with AVX, AMX, performance monitoring, VMX, MWAIT and an invariant TSC.
fn host() -> HostCaps {
    HostCaps {
        max_vcpus: 128,
        supported_cpuid: vec![
            entry(0, 0, [0x1f, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
            entry(1, 0, [0xc06f2, 0x0102_0800, 1 << 28 | 1 << 5 | 1 << 3 | 1 << 26, 1 << 9 | 1]),
            entry(4, 0, [0x7c00_4121, 0x2c0_003f, 63, 0]),
            entry(4, 3, [0x7c00_4163, 0x2c0_003f, 63, 0]),
            entry(7, 0, [2, 1 << 5, 1 << 22, 1 << 24 | 1 << 29]),
            entry(0xa, 0, [0x0730_0405, 0, 0, 0x603]),
            entry(0xb, 0, [1, 2, 0x100, 7]),
            entry(0xd, 0, [0x6_0007, 0x240, 0x2b00, 0]),
            entry(0xd, 1, [0xf, 0, 0x100, 0]),
            entry(0xd, 2, [256, 576, 0, 0]),
            entry(0xd, 17, [64, 2752, 2, 0]),
            entry(0xd, 18, [8192, 2816, 6, 0]),
            entry(0x8000_0001, 0, [0, 0, 1 << 2, 1 << 29]),
            entry(0x8000_0007, 0, [0, 0, 0, 1 << 8]),
            entry(0x8000_0008, 0, [0x3030, 0, 0, 0]),
            entry(0x4000_0001, 0, [1 << 3, 0, 0, 0]),
        ],
        msrs: Vec::new(),
        mce_cap: 0,
        tsc_control: false,
        tsc_deadline: true,
        clock_flags: 0,
        nested_state_size: 0,
        vm: VmCaps { x2apic_api: 0, exception_payload: false, triple_fault_event: false, mcg_cap: 0 },
    }
}

fn none() -> Mask {
    Mask::parse::<&str>(&[]).unwrap()
}

#[test]
fn what_cannot_move_with_a_guest_is_not_shown() {
    let shown = template(&host(), &none(), false);
    let leaf = |function, index| *find(&shown, function, index).unwrap();
    assert_eq!(
        leaf(1, 0).ecx,
        1 << 31 | 1 << 28 | 1 << 26 | 1 << 24 | 1 << 21,
        "AVX, XSAVE, deadline, x2APIC"
    );
    assert_eq!(leaf(7, 0).edx, 1 << 29, "no AMX");
    assert_eq!(leaf(0xa, 0), entry(0xa, 0, [0; 4]), "no performance monitoring");
    assert_eq!(leaf(0x8000_0007, 0).edx, 0, "no invariant TSC");
    assert_eq!(leaf(0x8000_0001, 0).ecx, 0, "no SVM");
    assert_eq!((xcr0(&shown), leaf(0xd, 0).ecx), (7, 832), "no tile data, and a size without it");
    assert_eq!(leaf(0xd, 18), entry(0xd, 18, [0; 4]));
    let nested = template(&host(), &none(), true);
    assert_eq!(find(&nested, 1, 0).unwrap().ecx >> 5 & 1, 1);
}

#[test]
fn a_masked_feature_is_not_shown_nor_its_state() {
    let shown = template(&host(), &Mask::parse(&["avx", "avx2", "x2apic"]).unwrap(), false);
    assert_eq!(find(&shown, 1, 0).unwrap().ecx & (1 << 28 | 1 << 21), 0);
    assert_eq!(find(&shown, 7, 0).unwrap().ebx, 0);
    assert_eq!((xcr0(&shown), find(&shown, 0xd, 0).unwrap().ecx), (3, 576));
}

#[test]
fn each_vcpu_is_a_core_of_one_socket() {
    let shown = template(&host(), &none(), false);
    for (index, cpus, bits) in [(0, 1, 0), (2, 3, 2), (127, 128, 7)] {
        let vcpu = for_vcpu(&shown, index, cpus);
        let leaf = |function, index| *find(&vcpu, function, index).unwrap();
        let id = u32::from(index);
        assert_eq!(leaf(1, 0).ebx >> 24, id);
        assert_eq!(leaf(1, 0).ebx >> 16 & 0xff, 1 << bits);
        assert_eq!(leaf(1, 0).edx >> 28 & 1, u32::from(cpus > 1));
        assert_eq!(leaf(4, 0).eax >> 14 & 0xfff, 0, "the first cache is the core's own");
        assert_eq!(leaf(4, 3).eax >> 14 & 0xfff, (1 << bits) - 1, "the third is everyone's");
        for topology in [0xb, 0x1f] {
            assert_eq!((leaf(topology, 0).eax, leaf(topology, 0).ebx, leaf(topology, 0).edx), (0, 1, id));
            assert_eq!((leaf(topology, 1).eax, leaf(topology, 1).ebx), (bits, u32::from(cpus)));
            assert_eq!(leaf(topology, 2).ecx, 2);
        }
    }
}

#[test]
fn what_a_host_lacks_is_named() {
    let shown = for_vcpu(&template(&host(), &none(), true), 1, 2);
    assert_eq!(missing_features(&shown, &host(), &none()), Vec::<String>::new());

    let mut poorer = host();
    for entry in &mut poorer.supported_cpuid {
        match (entry.function, entry.index) {
            (0, 0) => entry.ebx = u32::from_le_bytes(*b"Auth"),
            (7, 0) => entry.ebx = 0,
            (0xd, 0) => entry.eax = 3,
            (0x8000_0008, 0) => entry.eax = 0x302e,
            (0x4000_0001, 0) => entry.eax = 0,
            _ => {}
        }
    }
    let missing = missing_features(&shown, &poorer, &none()).join("; ");
    for part in
        ["AuthineIntel", "avx2", "kvmclock2", "xsave component 2", "48 bits of physical address (here: 46)"]
    {
        assert!(missing.contains(part), "{part} in: {missing}");
    }
    let masked = missing_features(&shown, &host(), &Mask::parse(&["avx", "tsc_deadline_timer"]).unwrap());
    assert_eq!(masked, ["tsc_deadline_timer", "avx", "xsave component 2"]);
}

#[test]
fn a_bit_without_a_name_is_named_by_its_place() {
    let mut shown = template(&host(), &none(), false);
    shown.iter_mut().filter(|e| e.function == 7).for_each(|e| e.edx |= 1 << 6);
    assert_eq!(missing_features(&shown, &host(), &none()), ["cpuid leaf 0x7 edx bit 6"]);
}
