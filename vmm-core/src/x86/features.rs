//! The names of CPUID's feature bits: those of Linux's `/proc/cpuinfo` where it has one, else KVM's.
//!
//! Sources: Intel SDM volume 2A (CPUID), AMD APM volume 3 appendix E, `Documentation/virt/kvm/x86/cpuid.rst`.

use super::cpuid::{CpuidEntry, Register};
use Register::{Eax, Ebx, Ecx, Edx};

/// A register of CPUID whose bits are features.
#[derive(Debug)]
pub struct Word {
    /// The leaf.
    pub leaf: u32,
    /// The sub-leaf.
    pub subleaf: u32,
    /// The register.
    pub register: Register,
    /// Names from bit 0 up, `-` where there is none.
    names: &'static str,
}

impl Word {
    /// The name of a bit: `cpuid leaf 0x7 edx bit 5` where it has none of its own.
    pub fn bit_name(&self, bit: u32) -> String {
        match self.names.split_ascii_whitespace().nth(bit as usize) {
            Some(name) if name != "-" => name.to_owned(),
            _ => {
                let subleaf = match self.subleaf {
                    0 => String::new(),
                    n => format!(" subleaf {n}"),
                };
                format!("cpuid leaf {:#x}{subleaf} {} bit {bit}", self.leaf, self.register.name())
            }
        }
    }

    /// The bits that have this name.
    fn bits(&self, name: &str) -> u32 {
        let named = self
            .names
            .split_ascii_whitespace()
            .take(32)
            .enumerate()
            .filter(|(_, n)| *n == name && name != "-");
        named.fold(0, |bits, (bit, _)| bits | 1 << bit)
    }

    /// This word in CPUID; 0 where the leaf is not there.
    pub fn of(&self, entries: &[CpuidEntry]) -> u32 {
        entries.iter().find(|e| self.is_in(e)).map_or(0, |e| e.get(self.register))
    }

    /// Whether an entry holds this word.
    pub fn is_in(&self, entry: &CpuidEntry) -> bool {
        entry.function == self.leaf && entry.index == self.subleaf
    }
}

const fn word(leaf: u32, subleaf: u32, register: Register, names: &'static str) -> Word {
    Word { leaf, subleaf, register, names }
}

/// Every feature word that is compared and masked.
#[rustfmt::skip]
pub static WORDS: [Word; WORD_COUNT] = [
    word(1, 0, Edx,
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov \
         pat pse36 pn clflush - dts acpi mmx fxsr sse sse2 ss ht tm ia64 pbe"),
    word(1, 0, Ecx,
        "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm \
         - pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand hypervisor"),
    word(6, 0, Eax,
        "dtherm ida arat - pln - pts hwp hwp_notify hwp_act_window hwp_epp hwp_pkg_req - - - - \
         - - - hfi"),
    word(7, 0, Ebx,
        "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm zero_fcs_fds mpx rdt_a \
         avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl"),
    word(7, 0, Ecx,
        "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni avx512_bitalg tme avx512_vpopcntdq - \
         la57 - - - - - rdpid kl bus_lock_detect cldemote - movdiri movdir64b enqcmd sgx_lc pks"),
    word(7, 0, Edx,
        "- sgx_keys avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl md_clear rtm_always_abort - tsx_force_abort serialize hybrid_cpu \
         tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 spec_ctrl intel_stibp flush_l1d arch_capabilities core_capabilities spec_ctrl_ssbd"),
    word(7, 1, Eax,
        "sha512 sm3 sm4 rao_int avx_vnni avx512_bf16 lass cmpccxadd arch_perfmon_ext - fzrm fsrs fsrc - - - \
         - fred lkgs wrmsrns nmi_source amx_fp16 hreset avx_ifma - - lam msrlist - - invd_disable movrs"),
    word(7, 1, Ebx, "ppin"),
    word(7, 1, Ecx, "- - - - - msr_imm"),
    word(7, 1, Edx,
        "- - - - avx_vnni_int8 avx_ne_convert - - amx_complex - avx_vnni_int16 - - utmr prefetchiti user_msr \
         - uiret_uif cet_sss avx10 - apx_f - mwait"),
    word(7, 2, Edx, "psfd ipred_ctrl rrsba_ctrl ddpd_u bhi_ctrl mcdt_no uclock_disable monitor_mitg_no"),
    word(0xd, 1, Eax, "xsaveopt xsavec xgetbv1 xsaves xfd"),
    word(0x8000_0001, 0, Edx,
        "fpu vme de pse tsc msr pae mce cx8 apic - syscall mtrr pge mca cmov \
         pat pse36 - mp nx - mmxext mmx fxsr fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow"),
    word(0x8000_0001, 0, Ecx,
        "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp \
         fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx"),
    word(0x8000_0007, 0, Ebx, "overflow_recov succor - smca"),
    word(0x8000_0007, 0, Edx, "ts fid vid ttp tm_amd stc 100mhzsteps hwpstate nonstop_tsc cpb aperfmperf proc_feedback acc_power"),
    word(0x8000_0008, 0, Ebx,
        "clzero irperf xsaveerptr - rdpru - mba - - wbnoinvd - - amd_ibpb - amd_ibrs amd_stibp \
         - amd_stibp_always_on - amd_ibrs_same_mode - - - amd_ppin amd_ssbd virt_ssbd amd_ssb_no cppc amd_psfd btc_no amd_ibpb_ret brs"),
    word(0x8000_000a, 0, Edx,
        "npt lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid decodeassists - - pausefilter - pfthreshold avic - v_vmsave_vmload \
         vgif - x2avic - v_spec_ctrl - - - - vnmi"),
    word(0x8000_0021, 0, Eax,
        "no_nested_data_bp fsgs_non_serializing lfence_rdtsc - - - null_sel_clr_base - autoibrs no_smm_ctl_msr - - - - - - \
         - - - - prefetchi - - - - - - sbpb ibpb_brtype srso_no"),
    word(0x4000_0001, 0, Eax,
        "kvmclock kvm_nopiodelay kvm_mmu kvmclock2 kvm_async_pf kvm_steal_time kvm_pv_eoi kvm_pv_unhalt - kvm_pv_tlb_flush kvm_async_pf_vmexit kvm_pv_ipi kvm_poll_control kvm_pv_sched_yield kvm_async_pf_int kvm_msi_ext_dest_id \
         kvm_hc_map_gpa_range kvm_migration_control - - - - - - kvmclock_stable"),
    word(0x4000_0001, 0, Edx, "kvm_hint_dedicated"),
];

const WORD_COUNT: usize = 21;

/// XSAVE state components that go with a feature.
const COMPONENTS: [(&str, u64); 6] = [
    ("avx", 1 << 2),
    ("mpx", 0b11 << 3),
    ("avx512f", 0b111 << 5),
    ("pku", 1 << 9),
    ("shstk", 0b11 << 11),
    ("xsave", !0),
];

/// Why a name was refused.
#[derive(Debug, thiserror::Error)]
pub enum CpuidError {
    /// No feature is called so.
    #[error("no CPU feature is called '{name}'{}", if .near.is_empty() { String::new() } else { format!("; there is {}", .near.join(", ")) })]
    UnknownFeature {
        /// The name.
        name: String,
        /// Names that are like it.
        near: Vec<&'static str>,
    },
}

/// A set of features.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    bits: [u32; WORD_COUNT],
    components: u64,
}

impl Mask {
    /// The features of these names, and the XSAVE components that go with them.
    pub fn parse<S: AsRef<str>>(names: &[S]) -> Result<Self, CpuidError> {
        let mut mask = Self { bits: [0; WORD_COUNT], components: 0 };
        for name in names.iter().map(AsRef::as_ref) {
            let mut known = false;
            for (bits, word) in mask.bits.iter_mut().zip(&WORDS) {
                known |= word.bits(name) != 0;
                *bits |= word.bits(name);
            }
            if !known {
                return Err(CpuidError::UnknownFeature { name: name.to_owned(), near: near(name) });
            }
            let components = COMPONENTS.iter().filter(|(feature, _)| *feature == name);
            mask.components = components.fold(mask.components, |all, (_, bits)| all | bits);
        }
        Ok(mask)
    }

    /// The XSAVE components in the set.
    pub fn components(&self) -> u64 {
        self.components
    }

    /// Takes the features out of CPUID (the components stay: see [`Self::components`]).
    pub(super) fn hide(&self, entries: &mut [CpuidEntry]) {
        for (word, bits) in WORDS.iter().zip(self.bits) {
            for entry in entries.iter_mut().filter(|e| word.is_in(e)) {
                *entry.get_mut(word.register) &= !bits;
            }
        }
    }
}

/// At most five names that are like this one.
fn near(name: &str) -> Vec<&'static str> {
    let plain = |name: &str| name.to_ascii_lowercase().replace(['_', '-', '.'], "");
    let name = plain(name);
    let mut near: Vec<(usize, &'static str)> = Vec::new();
    for known in WORDS.iter().flat_map(|word| word.names.split_ascii_whitespace()).filter(|n| *n != "-") {
        let distance = distance(&name, &plain(known));
        if distance <= 2 && distance < known.len() && !near.iter().any(|(_, n)| *n == known) {
            near.push((distance, known));
        }
    }
    near.sort_unstable();
    near.into_iter().take(5).map(|(_, name)| name).collect()
}

/// How many letters must be changed, put in or left out to make one of the other (Levenshtein). At most 64 are looked at.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (&a.as_bytes()[..a.len().min(64)], b.as_bytes());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_at_their_bits() {
        let bit = |leaf, subleaf, register, bit| {
            let word = WORDS.iter().find(|w| (w.leaf, w.subleaf, w.register) == (leaf, subleaf, register));
            word.unwrap().bit_name(bit)
        };
        let known = [
            (1, 0, Edx, 28, "ht"),
            (1, 0, Ecx, 5, "vmx"),
            (1, 0, Ecx, 24, "tsc_deadline_timer"),
            (1, 0, Ecx, 31, "hypervisor"),
            (6, 0, Eax, 2, "arat"),
            (7, 0, Ebx, 16, "avx512f"),
            (7, 0, Ebx, 31, "avx512vl"),
            (7, 0, Ecx, 16, "la57"),
            (7, 0, Ecx, 22, "rdpid"),
            (7, 0, Ecx, 31, "pks"),
            (7, 0, Edx, 14, "serialize"),
            (7, 0, Edx, 24, "amx_tile"),
            (7, 0, Edx, 31, "spec_ctrl_ssbd"),
            (7, 1, Eax, 4, "avx_vnni"),
            (7, 1, Eax, 17, "fred"),
            (7, 1, Eax, 26, "lam"),
            (7, 1, Edx, 8, "amx_complex"),
            (7, 1, Edx, 14, "prefetchiti"),
            (7, 1, Edx, 19, "avx10"),
            (7, 2, Edx, 4, "bhi_ctrl"),
            (0xd, 1, Eax, 4, "xfd"),
            (0x80000001, 0, Edx, 29, "lm"),
            (0x80000001, 0, Ecx, 2, "svm"),
            (0x80000001, 0, Ecx, 29, "mwaitx"),
            (0x80000007, 0, Edx, 8, "nonstop_tsc"),
            (0x80000008, 0, Ebx, 12, "amd_ibpb"),
            (0x80000008, 0, Ebx, 24, "amd_ssbd"),
            (0x8000000a, 0, Edx, 16, "vgif"),
            (0x8000000a, 0, Edx, 25, "vnmi"),
            (0x80000021, 0, Eax, 8, "autoibrs"),
            (0x80000021, 0, Eax, 29, "srso_no"),
            (0x40000001, 0, Eax, 9, "kvm_pv_tlb_flush"),
            (0x40000001, 0, Eax, 24, "kvmclock_stable"),
        ];
        for (leaf, subleaf, register, at, name) in known {
            assert_eq!(bit(leaf, subleaf, register, at), name);
        }
        assert!(WORDS.iter().all(|w| w.names.split_ascii_whitespace().count() <= 32));
        assert_eq!(bit(7, 0, Edx, 6), "cpuid leaf 0x7 edx bit 6");
        assert_eq!(bit(7, 1, Ebx, 5), "cpuid leaf 0x7 subleaf 1 ebx bit 5");
    }

    #[test]
    fn an_unknown_name_is_refused_and_near_ones_are_listed() {
        let error = Mask::parse(&["avx-2"]).unwrap_err().to_string();
        assert!(error.contains("'avx-2'") && error.contains("avx2"), "{error}");
        assert!(Mask::parse(&["avx2", "x2apic", "kvm_steal_time"]).is_ok());
        assert!(Mask::parse(&["-"]).is_err());
        assert!(Mask::parse(&["x".repeat(100_000)]).is_err());
    }
}
