//! Finding functions, sizing their BARs and moving them.

use super::fake::{BARS, bus};
use crate::devices::pci::*;
use crate::x86::layout::PCI_ECAM_START;

/// The ECAM address of a register.
fn at(slot: u64, register: u64) -> u64 {
    PCI_ECAM_START + (slot << 15) + register
}

fn read(bus: &PciBus, slot: u64, register: u64) -> u32 {
    let mut data = [0; 4];
    assert!(bus.read_memory(at(slot, register), &mut data));
    u32::from_le_bytes(data)
}

fn write(bus: &PciBus, slot: u64, register: u64, value: u32) {
    assert!(bus.write_memory(at(slot, register), &value.to_le_bytes()));
}

fn enable(bus: &PciBus, slot: u64) {
    write(bus, slot, 4, 7);
}

#[test]
fn a_function_is_found_by_ports_and_by_memory_and_an_empty_slot_is_not() {
    let (bus, _) = bus(&[3]);
    assert_eq!(read(&bus, 0, 0), 0x0008_1b36);
    assert_eq!(read(&bus, 3, 0), 0x5678_1234);
    assert!(!bus.read_memory(at(4, 0), &mut [0; 4]));
    // Function 1 of the slot, and another bus.
    assert!(!bus.read_memory(at(3, 0x1000), &mut [0; 4]));
    let mut data = [0; 4];
    assert!(!bus.read_ports(0xcfc, &mut data), "the address port is not enabled");
    assert!(bus.write_ports(0xcf8, &(1_u32 << 31 | 3 << 11).to_le_bytes()));
    assert!(bus.read_ports(0xcfc, &mut data));
    assert_eq!(u32::from_le_bytes(data), 0x5678_1234);
    let mut word = [0; 2];
    assert!(bus.read_ports(0xcfe, &mut word));
    assert_eq!(u16::from_le_bytes(word), 0x5678);
    assert!(bus.write_ports(0xcf8, &(1_u32 << 31 | 1 << 16 | 3 << 11).to_le_bytes()));
    assert!(!bus.read_ports(0xcfc, &mut data), "there is no bus 1");
    assert!(!bus.read_ports(0xcf9, &mut [0; 1]), "the reset register is not PCI's");
}

#[test]
fn bars_have_addresses_before_the_guest_starts_and_decode_once_they_are_enabled() {
    let (bus, functions) = bus(&[1, 2]);
    let bar = |slot, index: u64| read(&bus, slot, 0x10 + 4 * index);
    assert_eq!((bar(1, 0), bar(2, 0)), (0xc000_0000, 0xc002_0000));
    assert_eq!((bar(1, 2), bar(1, 3)), (0xc001_0000 | 0xc, 0));
    assert_eq!((bar(1, 4), bar(2, 4)), (0xc001, 0xc021));
    assert!(!bus.read_memory(0xc000_0010, &mut [0; 4]));
    enable(&bus, 1);
    let mut data = [0; 2];
    assert!(bus.read_memory(0xc001_0123, &mut data));
    assert_eq!(data, [0x25, 0x25]);
    assert!(bus.write_ports(0xc01f, &[7]));
    assert_eq!(*functions[0].written.lock().unwrap(), [(4, 0x1f, vec![7])]);
    assert!(!bus.read_memory(0xc000_0fff, &mut data), "an access over the end of a BAR");
    assert!(!bus.read_memory(0xc002_0000, &mut data), "the other function is not enabled");
}

#[test]
fn writing_ones_shows_the_size_of_a_bar_and_what_it_is() {
    let (bus, _) = bus(&[1]);
    for register in (0x10..0x28).step_by(4) {
        write(&bus, 1, register, u32::MAX);
    }
    let sizes: Vec<_> = (0x10..0x28).step_by(4).map(|register| read(&bus, 1, register)).collect();
    assert_eq!(sizes, [0xffff_f000, 0, 0xffff_000c, 0xffff_ffff, 0xffff_ffe1, 0]);
}

#[test]
fn a_bar_that_is_moved_decodes_there_and_no_longer_where_it_was() {
    let (bus, functions) = bus(&[1]);
    enable(&bus, 1);
    assert_eq!(functions[0].placed.lock().unwrap().get(&2), Some(&0xc001_0000));
    write(&bus, 1, 4, 0);
    assert!(functions[0].placed.lock().unwrap().is_empty());
    write(&bus, 1, 0x18, 0);
    write(&bus, 1, 0x1c, 0x41);
    enable(&bus, 1);
    assert!(bus.read_memory(0x41_0000_0000, &mut [0; 8]));
    assert!(!bus.read_memory(0xc001_0000, &mut [0; 8]));
    // With its space enabled, it follows each write.
    write(&bus, 1, 0x1c, 0x42);
    assert!(bus.read_memory(0x42_0000_ffff, &mut [0; 1]));
    assert!(!bus.read_memory(0x41_0000_0000, &mut [0; 1]));
    assert_eq!(functions[0].placed.lock().unwrap().get(&2), Some(&0x42_0000_0000));
}

#[test]
fn a_bar_outside_the_windows_or_over_another_decodes_nowhere() {
    let (bus, functions) = bus(&[1, 2]);
    enable(&bus, 1);
    for outside in [0, 0xbfff_f000, 0xe000_0000, 0xfee0_0000, 0xffff_f000] {
        write(&bus, 1, 0x10, outside);
        assert_eq!(functions[0].placed.lock().unwrap().get(&0), None, "{outside:#x}");
    }
    write(&bus, 1, 0x10, 0xc800_0000);
    write(&bus, 2, 0x10, 0xc800_0000);
    enable(&bus, 2);
    assert_eq!(functions[0].placed.lock().unwrap().get(&0), Some(&0xc800_0000));
    assert_eq!(functions[1].placed.lock().unwrap().get(&0), None);
}

#[test]
fn a_write_changes_no_bit_that_is_not_writable() {
    let (bus, _) = bus(&[1]);
    let before: Vec<_> = (0..0x40).step_by(4).map(|register| read(&bus, 1, register)).collect();
    for register in [0, 8, 0x28, 0x2c, 0x34] {
        write(&bus, 1, register, u32::MAX);
        assert_eq!(read(&bus, 1, register), before[register as usize / 4], "{register:#x}");
    }
    write(&bus, 1, 4, u32::MAX);
    assert_eq!(read(&bus, 1, 4), 0x0407);
    // Over the end of the 256 bytes, and of the 4 KiB.
    assert!(bus.write_memory(at(1, 0xfe), &[0xff; 4]));
    assert!(!bus.write_memory(at(1, 0xffe), &[0xff; 4]));
    write(&bus, 1, 0x100, u32::MAX);
    assert_eq!(read(&bus, 1, 0x100), 0);
}

#[test]
fn what_does_not_fit_the_windows_is_refused() {
    let mut windows = super::fake::windows();
    windows.io = 0xc000..0xc010;
    let error = PciBus::new(windows).add(1, super::fake::Function::new(1)).unwrap_err().to_string();
    assert!(error.contains("BAR of 0x20 bytes (Io)"), "{error}");
    let (mut bus, _) = bus(&[1]);
    assert!(bus.add(1, super::fake::Function::new(1)).is_err());
    assert!(bus.add(32, super::fake::Function::new(32)).is_err());
}

#[test]
fn two_vcpus_that_move_bars_and_use_them_do_not_wait_for_each_other() {
    let (bus, _) = bus(&[1, 2]);
    let deadline = std::time::Instant::now() + std::time::Duration::from_millis(200);
    let busy = |slot: u64| {
        let mut place = 0;
        while std::time::Instant::now() < deadline {
            place = (place + 1) % 64;
            write(&bus, slot, 0x10, 0xd000_0000 + place * BARS[0].size as u32);
            write(&bus, slot, 4, 2 + (place & 1));
            bus.read_memory(0xd000_0000 + u64::from(place) * BARS[0].size, &mut [0; 4]);
            bus.write_memory(at(3 - slot, 0x3c), &[place as u8]);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| busy(1));
        scope.spawn(|| busy(2));
    });
}
