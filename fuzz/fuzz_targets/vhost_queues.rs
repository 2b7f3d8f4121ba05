#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm_core::fuzzing::{Kind, drive};

// The first byte says which device the kernel serves.
fuzz_target!(|bytes: &[u8]| if let [first, bytes @ ..] = bytes {
    drive(if first & 1 == 0 { Kind::VhostNet } else { Kind::Vsock }, bytes);
});
