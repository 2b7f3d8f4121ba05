//! The driver's way through the registers, and stops.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::driver::{RAM, Rig};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

#[test]
fn a_driver_finds_every_capability_and_the_features_of_a_modern_device() {
    let rig = Rig::new();
    rig.set_config(4, &[2]);
    assert_eq!(rig.config(0), 0x106a_1af4);
    for kind in 1..=5 {
        assert_eq!(rig.config(rig.capability(9, Some(kind)) + 4) & 0xff, 0, "the BAR of kind {kind}");
    }
    assert_eq!(rig.config(rig.capability(9, Some(2)) + 16), 4, "the step of notifications");
    assert_eq!(rig.read(4, 4), 1 | 1 << 28 | 1 << 29);
    rig.write(0, &1_u32.to_le_bytes());
    assert_eq!(rig.read(4, 4), 1 | 1 << 8);
    assert_eq!((rig.read(18, 2), rig.read(24, 2)), (2, 16));
    rig.write(22, &2_u16.to_le_bytes());
    assert_eq!(rig.read(24, 2), 0, "there is no third queue");
}

#[test]
fn features_that_were_not_offered_or_without_version_1_are_not_ok() {
    let rig = Rig::new();
    rig.set_config(4, &[2]);
    assert_eq!(rig.negotiate(1), 3);
    rig.write(20, &[0]);
    assert_eq!(rig.negotiate(1 << 32 | 2), 3);
    rig.write(20, &[15]);
    assert_eq!(rig.status(), 3, "no DRIVER_OK without FEATURES_OK");
    rig.write(20, &[0]);
    assert_eq!(rig.negotiate(1 << 32 | 1), 11);
}

#[test]
fn a_request_is_answered_and_its_vector_sent() {
    let rig = Rig::new();
    rig.start();
    rig.offer(0, 0, 100);
    rig.notify(0);
    rig.wait_used(0, 1);
    rig.wait_sent(0, 1);
    assert_eq!(rig.memory_used(0), (0, 100));
    assert_eq!(rig.sent(2), 0, "the configuration did not change");
}

#[test]
fn without_msix_the_pin_is_high_until_the_isr_is_read_or_it_is_disabled() {
    let rig = Rig::new();
    rig.set_config(4, &[6]);
    rig.negotiate(1 << 32);
    rig.queue(0, 8);
    rig.write(20, &[15]);
    rig.offer(0, 0, 100);
    rig.notify(0);
    rig.wait_used(0, 1);
    let deadline = soon();
    while !rig.line.0.load(Ordering::SeqCst) {
        assert!(Instant::now() < deadline);
    }
    assert_eq!(rig.config(4) >> 16 & 8, 8, "interrupt status");
    rig.set_config(5, &[4]);
    assert!(!rig.line.0.load(Ordering::SeqCst));
    rig.set_config(5, &[0]);
    assert!(rig.line.0.load(Ordering::SeqCst));
    assert_eq!((rig.read(0x1000, 1), rig.read(0x1000, 1)), (1, 0));
    assert!(!rig.line.0.load(Ordering::SeqCst));
}

#[test]
fn a_driver_that_wants_no_interrupt_gets_none() {
    let rig = Rig::new();
    rig.start();
    rig.put(0x2000, 1_u16);
    rig.offer(0, 0, 100);
    rig.notify(0);
    rig.wait_used(0, 1);
    rig.function().quiesce(soon()).unwrap();
    assert_eq!(rig.sent(0), 0);
}

#[test]
fn doorbells_move_with_the_bar() {
    let rig = Rig::new();
    let at = |rig: &Rig| rig.bells.0.lock().unwrap().keys().copied().collect::<Vec<_>>();
    assert!(at(&rig).is_empty());
    rig.set_config(4, &[2]);
    assert_eq!(at(&rig), [0xc000_3000, 0xc000_3004]);
    rig.set_config(0x10, &0xd000_0000_u32.to_le_bytes());
    assert_eq!(at(&rig), [0xd000_3000, 0xd000_3004]);
    rig.set_config(4, &[0]);
    assert!(at(&rig).is_empty());
}

#[test]
fn registers_are_reached_through_configuration_space_too() {
    let rig = Rig::new();
    let access = rig.capability(9, Some(5));
    // The device status, with the BAR not even enabled.
    rig.set_config(access + 8, &20_u32.to_le_bytes());
    rig.set_config(access + 12, &1_u32.to_le_bytes());
    rig.set_config(access + 16, &[3]);
    rig.set_config(4, &[2]);
    assert_eq!(rig.status(), 3);
    assert_eq!(rig.config(access + 16) & 0xff, 3);
    for (offset, length) in [(0x8000, 4), (0x7ffe, 4), (20, 3), (u32::MAX, 1)] {
        rig.set_config(access + 8, &u32::to_le_bytes(offset));
        rig.set_config(access + 12, &u32::to_le_bytes(length));
        rig.set_config(access + 16, &[0]);
        assert_eq!(rig.status(), 3, "{offset:#x} {length}");
    }
}

#[test]
fn a_reset_forgets_everything() {
    let rig = Rig::new();
    rig.start();
    rig.write(20, &[0]);
    assert_eq!(rig.status(), 0);
    assert_eq!((rig.read(28, 2), rig.read(26, 2), rig.read(16, 2), rig.read(32, 4)), (0, 0xffff, 0xffff, 0));
    assert_eq!(*rig.device.resets.lock().unwrap(), 1);
    rig.offer(0, 0, 100);
    rig.notify(0);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(rig.get(0x3002), 0);
}

#[test]
fn a_queue_is_reset_and_enabled_again_while_the_other_goes_on() {
    let rig = Rig::new();
    rig.enable_msix();
    rig.negotiate(1 << 32 | 1 << 40);
    rig.queue(0, 8);
    rig.queue(1, 8);
    rig.write(20, &[15]);
    rig.offer(1, 0, 10);
    rig.notify(1);
    rig.wait_used(1, 1);
    rig.write(22, &1_u16.to_le_bytes());
    rig.write(58, &1_u16.to_le_bytes());
    assert_eq!((rig.read(58, 2), rig.read(28, 2)), (0, 0));
    rig.offer(0, 0, 10);
    rig.notify(0);
    rig.wait_used(0, 1);
    rig.put(0x6002, 0_u16);
    rig.put(0x7002, 0_u16);
    rig.queue(1, 8);
    rig.offer(1, 0, 20);
    rig.notify(1);
    rig.wait_used(1, 1);
}

#[test]
fn nothing_is_answered_between_quiesce_and_resume_and_no_notification_is_lost() {
    let rig = Rig::new();
    rig.start();
    rig.function().quiesce(soon()).unwrap();
    rig.offer(0, 0, 100);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!((rig.get(0x3002), rig.sent(0)), (0, 0));
    // No notification at all: whoever starts looks.
    rig.function().resume();
    rig.wait_used(0, 1);
    rig.wait_sent(0, 1);
    assert!(rig.sent(2) > 0, "the configuration's interrupt is given once too often");
    rig.function().resume();
    rig.offer(0, 1, 100);
    rig.notify(0);
    rig.wait_used(0, 2);
}

#[test]
fn a_request_that_is_not_answered_in_time_refuses_the_stop_and_the_device_goes_on() {
    let rig = Rig::new();
    rig.start();
    rig.device.stuck.store(true, Ordering::SeqCst);
    rig.offer(0, 0, 100);
    rig.notify(0);
    std::thread::sleep(Duration::from_millis(20));
    let error = rig.function().quiesce(Instant::now() + Duration::from_millis(50)).unwrap_err().to_string();
    assert!(error.contains("echo") && error.contains("not answered in time"), "{error}");
    rig.device.stuck.store(false, Ordering::SeqCst);
    rig.wait_used(0, 1);
    rig.offer(0, 1, 100);
    rig.notify(0);
    rig.wait_used(0, 2);
    rig.function().quiesce(soon()).unwrap();
}

#[test]
fn a_reset_that_must_wait_does_not_hold_the_vcpu_and_ends_when_the_request_has() {
    let rig = Rig::new();
    rig.start();
    rig.device.stuck.store(true, Ordering::SeqCst);
    rig.offer(0, 0, 100);
    rig.notify(0);
    std::thread::sleep(Duration::from_millis(20));
    let before = Instant::now();
    rig.write(20, &[0]);
    assert!(before.elapsed() < Duration::from_secs(1));
    assert_eq!(rig.status(), 15, "not done yet");
    rig.device.stuck.store(false, Ordering::SeqCst);
    let deadline = soon();
    while rig.status() != 0 {
        assert!(Instant::now() < deadline);
    }
}

impl Rig {
    /// The first used element of a queue: descriptor and bytes.
    fn memory_used(&self, queue: u16) -> (u16, u16) {
        let at = u64::from(queue) * 0x4000 + 0x3004;
        assert!(at < RAM);
        (self.get(at), self.get(at + 4))
    }
}
