//! Whether this process may have a guest's RAM pinned for devices. The kernel says so when the mappings are made or taken over:
//! for a guest that comes from elsewhere that is when it stands still, and so it is asked here before.

use std::fs;

use nix::sys::resource::{Resource, getrlimit};

use crate::devices::DeviceError;

/// The bit of `CAP_IPC_LOCK` among the capabilities.
const CAP_IPC_LOCK: u32 = 14;

/// What to do about too small a limit.
pub(super) const WAY_OUT: &str = "raise RLIMIT_MEMLOCK (LimitMEMLOCK= of a unit), or give CAP_IPC_LOCK";
/// Why it may be too small although it covers the RAM.
pub(super) const TWICE: &str = "through IOMMUFD it counts twice for its user while it changes hands";

/// Refuses to pin so many bytes in the address space `id`, if this process may not.
pub(super) fn may_pin(id: &str, bytes: u64) -> Result<(), DeviceError> {
    let limit = getrlimit(Resource::RLIMIT_MEMLOCK);
    let (limit, _) = limit.map_err(DeviceError::io(id, "asking how much memory may be locked"))?;
    if limit >= bytes || may_lock_all(&fs::read_to_string("/proc/self/status").unwrap_or_default()) {
        return Ok(());
    }
    Err(DeviceError::unfit(id)((
        format!("a process that may lock {limit} bytes of memory (RLIMIT_MEMLOCK)"),
        format!("at least {bytes}, all of the guest's RAM, which is pinned ({TWICE}): {WAY_OUT}"),
    )))
}

/// Whether a process with this `/proc/PID/status` is not held to the limit. Where it does not tell, the kernel will.
fn may_lock_all(status: &str) -> bool {
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = capabilities.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    bits.is_none_or(|bits| bits >> CAP_IPC_LOCK & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_the_capability_is_not_held_to_the_limit() {
        let may = |effective: &str| may_lock_all(&format!("Name:\tx\nCapPrm:\t0\nCapEff:\t{effective}\n"));
        assert!(may("000001ffffffffff") && may("0000000000004000"));
        assert!(!may("0000000000000000") && !may("000001ffffffbfff"));
        assert!(may_lock_all("") && may("what"));
    }
}
