use super::*;

/// 2026-11-20 21:35:19 UTC, a Friday.
const NOW: i64 = 1_795_210_519 * SECOND;

fn read(clock: &Clock, now: i64) -> [u8; 8] {
    TIME.map(|at| clock.read(at, now))
}

#[test]
fn the_time_is_the_hosts_in_bcd() {
    let clock = Clock::new(1 << 30);
    assert_eq!(read(&clock, NOW), [0x19, 0x35, 0x21, 6, 0x20, 0x11, 0x26, 0x20]);
}

#[test]
fn binary_and_twelve_hours_are_shown_if_register_b_says_so() {
    let mut clock = Clock::new(1 << 30);
    clock.write(REGISTER_B, BINARY, NOW);
    assert_eq!(read(&clock, NOW), [19, 35, 9 | PM, 6, 20, 11, 26, 20]);
    assert_eq!(clock.read(HOURS, NOW + 3 * 3600 * SECOND), 12);
}

#[test]
fn a_clock_that_was_set_goes_on_from_there_in_every_format() {
    for format in [0, BINARY, HOURS_24, BINARY | HOURS_24] {
        let mut other = Clock::new(1 << 30);
        other.write(REGISTER_B, format, NOW);
        let wanted = read(&other, NOW + 40_000 * SECOND);
        let mut clock = Clock::new(1 << 30);
        clock.write(REGISTER_B, format | SET, NOW);
        for (at, value) in TIME.into_iter().zip(wanted) {
            clock.write(at, value, NOW);
        }
        assert_eq!(read(&clock, NOW + 5 * SECOND), wanted, "it stands still while it is set");
        clock.write(REGISTER_B, format, NOW + 5 * SECOND);
        assert_eq!(read(&clock, NOW + 5 * SECOND), wanted);
        assert_eq!(clock.offset, 39_995 * SECOND);
    }
}

#[test]
fn a_register_can_be_set_while_the_clock_runs() {
    let mut clock = Clock::new(1 << 30);
    clock.write(MINUTES, 0x36, NOW);
    assert_eq!(clock.offset, 60 * SECOND);
}

#[test]
fn an_update_is_announced_before_the_second_changes() {
    let clock = Clock::new(1 << 30);
    assert_eq!(clock.read(REGISTER_A, NOW + SECOND - UPDATE - 1) & UIP, 0);
    assert_eq!(clock.read(REGISTER_A, NOW + SECOND - 1) & UIP, UIP);
    assert_eq!(clock.read(REGISTER_A, NOW + SECOND) & UIP, 0);
}

#[test]
fn any_bytes_as_a_time_lead_to_an_offset_in_bounds() {
    for byte in 0..=255 {
        for format in [0, BINARY, HOURS_24, BINARY | HOURS_24] {
            let mut clock = Clock::new(1 << 30);
            clock.write(REGISTER_B, SET | format, NOW);
            for at in TIME {
                clock.write(at, byte, NOW);
            }
            clock.write(REGISTER_B, format, NOW);
            assert!(clock.offset.abs() <= MAX_OFFSET, "{byte:#x}");
            read(&clock, NOW);
        }
    }
}

#[test]
fn the_ram_size_is_told_in_its_bytes() {
    let clock = Clock::new(6 << 30);
    let bytes = |at: usize, size: usize| (0..size).map(|i| clock.read(at + i, NOW)).collect::<Vec<_>>();
    assert_eq!(bytes(0x30, 2), [0xff, 0xff]);
    assert_eq!(bytes(0x34, 2), [0x00, 0xbf]);
    assert_eq!(bytes(0x5b, 3), [0x00, 0xc0, 0x00]);
}
