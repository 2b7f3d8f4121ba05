#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm_core::fuzzing::load_changed;

fuzz_target!(|bytes: &[u8]| load_changed(bytes));
