use super::*;

/// 2026-11-20 21:35:19 UTC, a Friday.
const NOW: i64 = 1_795_210_519 * SECOND;

fn read(clock: &mut Clock, now: i64) -> [u8; 8] {
    TIME.map(|at| clock.read(at, now))
}

#[test]
fn the_time_is_the_hosts_in_bcd() {
    let mut clock = Clock::new(1 << 30, NOW);
    assert_eq!(read(&mut clock, NOW), [0x19, 0x35, 0x21, 6, 0x20, 0x11, 0x26, 0x20]);
}

#[test]
fn binary_and_twelve_hours_are_shown_if_register_b_says_so() {
    let mut clock = Clock::new(1 << 30, NOW);
    clock.write(REGISTER_B, BINARY, NOW);
    assert_eq!(read(&mut clock, NOW), [19, 35, 9 | PM, 6, 20, 11, 26, 20]);
    assert_eq!(clock.read(HOURS, NOW + 3 * 3600 * SECOND), 12);
}

#[test]
fn a_clock_that_was_set_goes_on_from_there_in_every_format() {
    for format in [0, BINARY, HOURS_24, BINARY | HOURS_24] {
        let mut other = Clock::new(1 << 30, NOW);
        other.write(REGISTER_B, format, NOW);
        let wanted = read(&mut other, NOW + 40_000 * SECOND);
        let mut clock = Clock::new(1 << 30, NOW);
        clock.write(REGISTER_B, format | SET, NOW);
        for (at, value) in TIME.into_iter().zip(wanted) {
            clock.write(at, value, NOW);
        }
        assert_eq!(read(&mut clock, NOW + 5 * SECOND), wanted, "it stands still while it is set");
        clock.write(REGISTER_B, format, NOW + 5 * SECOND);
        assert_eq!(read(&mut clock, NOW + 5 * SECOND), wanted);
        assert_eq!(clock.offset, 39_995 * SECOND);
    }
}

#[test]
fn a_register_can_be_set_while_the_clock_runs() {
    let mut clock = Clock::new(1 << 30, NOW);
    clock.write(MINUTES, 0x36, NOW);
    assert_eq!(clock.offset, 60 * SECOND);
}

#[test]
fn an_update_is_announced_before_the_second_changes() {
    let mut clock = Clock::new(1 << 30, NOW);
    assert_eq!(clock.read(REGISTER_A, NOW + SECOND - UPDATE - 1) & UIP, 0);
    assert_eq!(clock.read(REGISTER_A, NOW + SECOND - 1) & UIP, UIP);
    assert_eq!(clock.read(REGISTER_A, NOW + SECOND) & UIP, 0);
}

#[test]
fn any_bytes_as_a_time_lead_to_an_offset_in_bounds() {
    for byte in 0..=255 {
        for format in [0, BINARY, HOURS_24, BINARY | HOURS_24] {
            let mut clock = Clock::new(1 << 30, NOW);
            clock.write(REGISTER_B, SET | format, NOW);
            for at in TIME {
                clock.write(at, byte, NOW);
            }
            clock.write(REGISTER_B, format, NOW);
            assert!(clock.offset.abs() <= MAX_OFFSET, "{byte:#x}");
            read(&mut clock, NOW);
        }
    }
}

#[test]
fn the_ram_size_is_told_in_its_bytes() {
    let mut clock = Clock::new(6 << 30, NOW);
    let mut bytes = |at: usize, size: usize| (0..size).map(|i| clock.read(at + i, NOW)).collect::<Vec<_>>();
    assert_eq!(bytes(0x30, 2), [0xff, 0xff]);
    assert_eq!(bytes(0x34, 2), [0x00, 0xbf]);
    assert_eq!(bytes(0x5b, 3), [0x00, 0xc0, 0x00]);
}

/// A clock in binary with an alarm at this time of a day.
fn with_alarm([hour, minute, second]: [u8; 3]) -> Clock {
    let mut clock = Clock::new(1 << 30, NOW);
    clock.write(REGISTER_B, BINARY | HOURS_24, NOW);
    for (at, value) in [(HOURS_ALARM, hour), (MINUTES_ALARM, minute), (SECONDS_ALARM, second)] {
        clock.write(at, value, NOW);
    }
    clock
}

fn enable(clock: &mut Clock, what: u8) {
    assert!(!clock.write(REGISTER_B, BINARY | HOURS_24 | what, NOW), "nothing has come");
}

#[test]
fn an_alarm_interrupts_once_at_its_time_and_again_when_it_was_read() {
    let mut clock = with_alarm([21, 35, 21]);
    enable(&mut clock, ALARM);
    assert_eq!(clock.next_interrupt(), Some(NOW + 2 * SECOND));
    assert!(!clock.update(NOW + 2 * SECOND - 1));
    assert!(clock.update(NOW + 2 * SECOND));
    assert!(!clock.update(NOW + 3 * SECOND) && clock.next_interrupt().is_none());
    assert_eq!(clock.read(REGISTER_C, NOW + 3 * SECOND), IRQF | ALARM | UPDATED);
    assert_eq!(clock.read(REGISTER_C, NOW + 3 * SECOND), 0);
    assert_eq!(clock.next_interrupt(), Some(NOW + (DAY_SECONDS + 2) * SECOND));
}

#[test]
fn an_alarm_that_came_unseen_is_told_of_later_and_one_that_is_not_enabled_does_not_interrupt() {
    let mut clock = with_alarm([21, 35, 21]);
    assert!(clock.next_interrupt().is_none() && !clock.update(NOW + 3600 * SECOND));
    assert_eq!(clock.read(REGISTER_C, NOW), ALARM | UPDATED);
    enable(&mut clock, ALARM);
    assert!(clock.update(NOW + (DAY_SECONDS + 3600) * SECOND), "the next day's");
}

#[test]
fn enabling_an_alarm_that_has_come_interrupts() {
    let mut clock = with_alarm([21, 35, 21]);
    clock.update(NOW + 2 * SECOND);
    assert!(clock.write(REGISTER_B, BINARY | HOURS_24 | ALARM, NOW + 2 * SECOND));
    assert!(!clock.write(REGISTER_B, BINARY | HOURS_24, NOW + 2 * SECOND));
    assert_eq!(clock.read(REGISTER_C, NOW), ALARM | UPDATED);
}

#[test]
fn each_update_interrupts_if_that_is_enabled_and_none_comes_while_the_clock_is_set() {
    let mut clock = with_alarm([0, 0, 0]);
    enable(&mut clock, UPDATED);
    assert_eq!(clock.next_interrupt(), Some(NOW + SECOND));
    assert!(clock.update(NOW + SECOND));
    assert_eq!(clock.read(REGISTER_C, NOW), IRQF | UPDATED);
    clock.write(REGISTER_B, BINARY | HOURS_24 | SET | UPDATED | ALARM, NOW);
    assert_eq!(clock.read(REGISTER_B, NOW), BINARY | HOURS_24 | SET | ALARM);
    assert!(clock.next_interrupt().is_none() && !clock.update(NOW + 5 * DAY_SECONDS * SECOND));
}

#[test]
fn an_alarm_is_of_the_clocks_own_time_in_every_format() {
    for (format, alarm) in [
        (HOURS_24, [0x09, 0x35, 0x19]),
        (BINARY | HOURS_24, [9, 35, 19]),
        (0, [0x09, 0x35, 0x19]),
        (0, [0x09 | PM, 0x35, 0x19]),
        (BINARY, [0x0c | PM, 35, 19]),
        (BINARY, [0x0c, 35, 19]),
    ] {
        let mut clock = Clock::new(1 << 30, NOW);
        clock.write(REGISTER_B, format | ALARM, NOW);
        // Five minutes ahead of the host's.
        clock.write(MINUTES, clock.encode(40), NOW);
        for (at, value) in [HOURS_ALARM, MINUTES_ALARM, SECONDS_ALARM].into_iter().zip(alarm) {
            clock.write(at, value, NOW);
        }
        let due = clock.next_interrupt().expect("an alarm");
        assert!(due > NOW && due <= NOW + DAY_SECONDS * SECOND);
        assert_eq!([HOURS, MINUTES, SECONDS].map(|at| clock.read(at, due)), alarm, "{format:#x}");
    }
}

#[test]
fn a_time_that_was_set_is_not_one_that_passed_and_an_impossible_alarm_never_comes() {
    let mut clock = with_alarm([22, 0, 0]);
    enable(&mut clock, ALARM);
    clock.write(HOURS, 23, NOW);
    assert!(!clock.update(NOW) && !clock.update(NOW + SECOND));
    for (at, value) in [(SECONDS_ALARM, 60), (HOURS_ALARM, 24), (DAY_ALARM, 32), (MONTH_ALARM, 13)] {
        let mut clock = with_alarm([ANY; 3]);
        enable(&mut clock, ALARM);
        assert_eq!(clock.next_interrupt(), Some(NOW + SECOND));
        clock.write(at, value, NOW);
        assert_eq!(clock.next_interrupt(), None, "{at:#x}");
    }
}

#[test]
fn an_alarm_may_have_a_date() {
    let mut clock = with_alarm([21, 35, 19]);
    enable(&mut clock, ALARM);
    clock.write(DAY_ALARM, 22, NOW);
    assert_eq!(clock.next_interrupt(), Some(NOW + 2 * DAY_SECONDS * SECOND));
    clock.write(MONTH_ALARM, 12, NOW);
    assert_eq!(clock.next_interrupt(), Some(NOW + 32 * DAY_SECONDS * SECOND));
    clock.write(MONTH_ALARM, 0xff, NOW);
    assert_eq!(clock.next_interrupt(), Some(NOW + 2 * DAY_SECONDS * SECOND));
}
