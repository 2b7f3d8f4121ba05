#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm_core::fuzzing::read_state;

fuzz_target!(|bytes: &[u8]| read_state(bytes));
