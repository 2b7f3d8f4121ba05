#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm_core::fuzzing::{Kind, drive};

fuzz_target!(|bytes: &[u8]| drive(Kind::Net, bytes));
