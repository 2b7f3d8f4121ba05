//! Where a guest goes on after sleep: the firmware waking vector in its FACS (ACPI 6.5, 5.2.10 and 16.3.1).

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::FACS_START;
use crate::x86::layout::HIGH_RAM_START;

/// Offset of `Firmware_Waking_Vector`. The 64-bit one is not looked at: a guest that has but that is not woken.
const WAKING_VECTOR: u64 = 12;

/// Why a guest that sleeps cannot be woken. The vector is the guest's own to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VectorError {
    /// It set none.
    #[error("the guest sleeps and has set no waking vector in its FACS")]
    None,
    /// Real mode does not reach it.
    #[error(
        "the guest sleeps and has set the waking vector {found:#x}; expected one below {HIGH_RAM_START:#x}"
    )]
    TooHigh {
        /// What it set.
        found: u32,
    },
    /// The FACS is not guest memory.
    #[error("the guest sleeps and has no memory at {FACS_START:#x}, where its FACS should be")]
    Memory,
}

/// The address, below 1 MiB, at which the boot vCPU goes on in real mode.
pub fn waking_vector(memory: &GuestMemoryMmap) -> Result<u32, VectorError> {
    let read = memory.read_obj::<u32>(GuestAddress(FACS_START + WAKING_VECTOR));
    match read.map_err(|_| VectorError::Memory)? {
        0 => Err(VectorError::None),
        found if u64::from(found) >= HIGH_RAM_START => Err(VectorError::TooHigh { found }),
        vector => Ok(vector),
    }
}

#[cfg(test)]
mod tests {
    use super::super::write;
    use super::*;

    #[test]
    fn a_vector_is_the_guests_and_is_believed_only_below_a_mebibyte() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write(&memory, 1, 1 << 30).unwrap();
        assert_eq!(waking_vector(&memory), Err(VectorError::None));
        let set = |vector: u32| memory.write_obj(vector, GuestAddress(FACS_START + WAKING_VECTOR)).unwrap();
        set(0x9_a123);
        assert_eq!(waking_vector(&memory), Ok(0x9_a123));
        for found in [0x10_0000, u32::MAX] {
            set(found);
            assert_eq!(waking_vector(&memory), Err(VectorError::TooHigh { found }));
        }
    }

    #[test]
    fn a_guest_without_memory_there_is_not_woken() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 16)]).unwrap();
        assert_eq!(waking_vector(&memory), Err(VectorError::Memory));
    }
}
