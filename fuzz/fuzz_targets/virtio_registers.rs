#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm_core::fuzzing::drive_transport;

fuzz_target!(|bytes: &[u8]| drive_transport(bytes));
