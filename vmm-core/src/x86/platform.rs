//! What a guest's vCPUs and VM are made with: decided at a cold boot, the same for all of its life.

use serde::{Deserialize, Serialize};

use super::caps::{CapsError, HostCaps, VmCaps};
use super::cpuid::{self, CpuidEntry, CpuidError, Mask};
use crate::config::CpuConfig;

/// What must be known to make the VM and its vCPUs, before any state is loaded into them. On the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// What is switched on in the VM.
    pub caps: VmCaps,
    /// The rate of the guest's TSC in kHz; `None` until the first vCPU is made: the host's own.
    pub tsc_khz: Option<u32>,
    /// CPUID of each vCPU, by index.
    pub cpuid: Vec<Vec<CpuidEntry>>,
}

/// Why a host cannot be this platform.
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    /// A capability of KVM.
    #[error(transparent)]
    Caps(#[from] CapsError),
    /// A name in the mask.
    #[error(transparent)]
    Cpuid(#[from] CpuidError),
    /// Features of the processor.
    #[error("the guest was shown {}, which this host lacks", .0.join(", "))]
    Missing(Vec<String>),
}

impl Platform {
    /// The platform of a guest that is booted on this host.
    pub fn new(host: &HostCaps, cpu: &CpuConfig, cpus: u16) -> Result<Self, PlatformError> {
        let mask = Mask::parse(&cpu.mask)?;
        let template = cpuid::template(host, &mask, cpu.nested);
        let cpuid = (0..cpus).map(|index| cpuid::for_vcpu(&template, index, cpus)).collect();
        Ok(Self { caps: host.vm.clone(), tsc_khz: None, cpuid })
    }

    /// Checks that this host, taken to lack what `cpu` masks, has all that the guest was shown.
    pub fn check(&self, host: &HostCaps, cpu: &CpuConfig) -> Result<(), PlatformError> {
        self.caps.check(host)?;
        let mask = Mask::parse(&cpu.mask)?;
        let mut missing: Vec<String> = Vec::new();
        for shown in &self.cpuid {
            for name in cpuid::missing_features(shown, host, &mask) {
                if !missing.contains(&name) {
                    missing.push(name);
                }
            }
        }
        if missing.is_empty() { Ok(()) } else { Err(PlatformError::Missing(missing)) }
    }
}
