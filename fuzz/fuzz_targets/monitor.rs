#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm_core::fuzzing::answer_client;

fuzz_target!(|bytes: &[u8]| answer_client(bytes));
