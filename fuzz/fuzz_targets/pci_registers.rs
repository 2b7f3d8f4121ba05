#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm_core::fuzzing::drive_pci;

fuzz_target!(|bytes: &[u8]| drive_pci(bytes));
