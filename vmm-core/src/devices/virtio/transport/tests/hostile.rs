//! Drivers that break the rules.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::driver::{RAM, Rig};

/// Waits until the device says that it needs a reset, resets it, and sees that it works again.
fn stands_still_until_it_is_reset(rig: &Rig) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while rig.status() & 0x40 == 0 {
        assert!(Instant::now() < deadline, "status {:#x}", rig.status());
    }
    rig.write(20, &[0]);
    assert_eq!(rig.status(), 0);
    rig.put(0x2002, 0_u16);
    rig.put(0x3002, 0_u16);
    rig.start();
    rig.offer(0, 0, 100);
    rig.notify(0);
    rig.wait_used(0, 1);
}

#[test]
fn an_available_index_that_is_too_far_ahead_stops_the_device_until_it_is_reset() {
    let rig = Rig::new();
    rig.start();
    rig.put(0x2002, 100_u16);
    rig.notify(0);
    rig.wait_sent(2, 1);
    stands_still_until_it_is_reset(&rig);
}

#[test]
fn a_descriptor_beyond_the_table_stops_the_device_until_it_is_reset() {
    let rig = Rig::new();
    rig.start();
    rig.offer(0, 0, 1);
    rig.put(0x2004, 77_u16);
    rig.notify(0);
    stands_still_until_it_is_reset(&rig);
}

#[test]
fn a_ring_outside_ram_stops_the_device_until_it_is_reset() {
    let rig = Rig::new();
    rig.enable_msix();
    rig.negotiate(1 << 32);
    rig.queue(0, 8);
    rig.write(20, &[0]);
    rig.negotiate(1 << 32);
    rig.write(22, &0_u16.to_le_bytes());
    rig.write(48, &(RAM as u32).to_le_bytes());
    rig.write(28, &1_u16.to_le_bytes());
    rig.write(20, &[15]);
    stands_still_until_it_is_reset(&rig);
}

#[test]
fn a_chain_that_loops_ends_and_the_device_lives() {
    let rig = Rig::new();
    rig.start();
    rig.offer(0, 0, 1);
    // To itself.
    rig.put(0x100c, 1_u16);
    rig.put(0x100e, 0_u16);
    rig.notify(0);
    rig.wait_used(0, 1);
    rig.offer(0, 1, 1);
    rig.notify(0);
    rig.wait_used(0, 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_writes_to_any_register_leave_a_device_that_can_be_stopped_and_saved(
        writes in prop::collection::vec((any::<bool>(), 0_u64..0x8000, 0_usize..4, any::<u64>()), 1..60)
    ) {
        let rig = Rig::new();
        rig.start();
        for (configuration, at, width, value) in writes {
            let data = &value.to_le_bytes()[..1 << width];
            // Most registers are at the beginning of their pages.
            let near = at & 0x7000 | at & 0x3f;
            if configuration {
                let offset = (at & 0xff) as usize;
                rig.function().write_config(offset, data);
                rig.function().read_config(offset, &mut [0; 8]);
            } else {
                rig.function().write_bar(0, near, data);
                rig.function().read_bar(0, near, &mut [0; 8]);
            }
        }
        rig.function().quiesce(Instant::now() + Duration::from_secs(5)).unwrap();
        super::state::saved(&rig);
        rig.function().resume();
    }
}
