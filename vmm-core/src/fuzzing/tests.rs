//! Drivers that break the rules, chosen by proptest.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::channel;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;

/// The most that a case may take.
const LIMIT: Duration = Duration::from_mins(1);

/// Runs a case on a thread of its own: one that hangs fails.
fn bounded(case: impl FnOnce() + Send + 'static) {
    let (done, ended) = channel();
    std::thread::spawn(move || done.send(catch_unwind(AssertUnwindSafe(case))));
    if let Err(panic) = ended.recv_timeout(LIMIT).expect("the case hangs") {
        resume_unwind(panic);
    }
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(0x6370_7221),
        failure_persistence: None,
        max_shrink_time: 10_000,
        ..ProptestConfig::default()
    }
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..800)
}

proptest! {
    #![proptest_config(config(150))]

    #[test]
    fn an_entropy_device_lives_through_whatever_a_driver_does(bytes in bytes()) {
        bounded(move || drive(Kind::Rng, &bytes));
    }

    #[test]
    fn a_console_lives_through_whatever_a_driver_does(bytes in bytes()) {
        bounded(move || drive(Kind::Console, &bytes));
    }

    #[test]
    fn a_disk_lives_through_whatever_a_driver_does(bytes in bytes()) {
        bounded(move || drive(Kind::Block, &bytes));
    }

    #[test]
    fn a_balloon_lives_through_whatever_a_driver_does(bytes in bytes()) {
        bounded(move || drive(Kind::Balloon, &bytes));
    }

    #[test]
    fn a_network_device_lives_through_whatever_a_driver_does(bytes in bytes()) {
        bounded(move || drive(Kind::Net, &bytes));
    }

    #[test]
    fn vhost_net_is_told_nothing_but_the_guests_memory_whatever_a_driver_does(bytes in bytes()) {
        bounded(move || drive(Kind::VhostNet, &bytes));
    }

    #[test]
    fn vhost_vsock_is_told_nothing_but_the_guests_memory_whatever_a_driver_does(bytes in bytes()) {
        bounded(move || drive(Kind::Vsock, &bytes));
    }

    #[test]
    fn state_that_was_changed_on_its_way_is_loaded_or_refused_by_name(bytes in bytes()) {
        bounded(move || load_changed(&bytes));
    }

    #[test]
    fn a_function_lives_through_whatever_is_written_to_its_configuration_space(bytes in bytes()) {
        bounded(move || drive_pci(&bytes));
    }

    #[test]
    fn a_device_lives_through_whatever_is_written_to_its_registers(bytes in bytes()) {
        bounded(move || drive_transport(&bytes));
    }

    #[test]
    fn state_that_is_anything_is_read_without_a_panic(bytes in bytes()) {
        read_state(&bytes);
        read_state(&[&b"cprstate\x01\0\0\0"[..], &bytes].concat());
    }

    #[test]
    fn a_client_that_says_anything_is_answered_without_a_panic(bytes in bytes()) {
        answer_client(&bytes);
    }
}
