//! The device with queues in its hands, on RAM that is a file.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::devices::pci::fake::saved;
use crate::devices::virtio::{Run, VirtioDevice, driver};

/// Two pieces of RAM, the second from 2 MiB, where the file goes on.
fn ram() -> (Arc<GuestMemoryMmap>, File) {
    let file = memfd::MemfdOptions::new().create("ram").unwrap().into_file();
    file.set_len(2 << 20).unwrap();
    let piece =
        |guest, at| (GuestAddress(guest), 1 << 20, Some(FileOffset::new(file.try_clone().unwrap(), at)));
    let memory = GuestMemoryMmap::from_ranges_with_files([piece(0, 0), piece(2 << 20, 1 << 20)]).unwrap();
    (Arc::new(memory), file)
}

/// Gives the device a queue with one chain of one buffer, and the chains that it has used.
fn answer(balloon: &Balloon, memory: &Arc<GuestMemoryMmap>, queue: u16, (at, len): (u64, u32)) -> u16 {
    memory.write_obj(at, GuestAddress(0x1000)).unwrap();
    memory.write_obj(len, GuestAddress(0x1008)).unwrap();
    memory.write_obj(u32::from(queue == 2) << 1, GuestAddress(0x100c)).unwrap();
    memory.write_obj(0_u16, GuestAddress(0x2004)).unwrap();
    memory.write_obj(1_u16, GuestAddress(0x2002)).unwrap();
    memory.write_obj(0_u16, GuestAddress(0x3002)).unwrap();
    let queues = vec![driver::queue(queue, 128, [0x1000, 0x2000, 0x3000], &driver::interrupt(3))];
    balloon.start(Run { memory: Arc::clone(memory), features: 0, queues }).unwrap();
    balloon.stop(Instant::now() + Duration::from_secs(5)).unwrap();
    memory.read_obj(GuestAddress(0x3002)).unwrap()
}

fn fill(memory: &GuestMemoryMmap) {
    for at in [0, 2 << 20] {
        memory.write_slice(&vec![0xaa; 1 << 20], GuestAddress(at)).unwrap();
    }
}

fn byte(memory: &GuestMemoryMmap, at: u64) -> u8 {
    memory.read_obj(GuestAddress(at)).unwrap()
}

#[test]
fn pages_that_the_guest_inflates_with_go_back_to_the_host_and_no_other() {
    let (memory, file) = ram();
    fill(&memory);
    let before = file.metadata().unwrap().blocks();
    let numbers: Vec<u8> =
        [0x80_u32, 0x205, 0x81, 0x150, u32::MAX].iter().flat_map(|n| n.to_le_bytes()).collect();
    memory.write_slice(&numbers, GuestAddress(0x4000)).unwrap();
    let balloon = Balloon::new("balloon0", false).unwrap();
    assert_eq!(answer(&balloon, &memory, 0, (0x4000, numbers.len() as u32)), 1);
    assert_eq!(before - file.metadata().unwrap().blocks(), 3 * 8);
    assert_eq!([0x7_ffff, 0x8_0000, 0x8_1fff, 0x8_2000].map(|at| byte(&memory, at)), [0xaa, 0, 0, 0xaa]);
    assert_eq!([0x20_4fff, 0x20_5000, 0x20_6000].map(|at| byte(&memory, at)), [0xaa, 0, 0xaa]);
}

#[test]
fn pages_that_are_reported_free_go_back_as_far_as_they_are_whole() {
    let (memory, _file) = ram();
    fill(&memory);
    let balloon = Balloon::new("balloon0", true).unwrap();
    balloon.set_page_size(0x1_0000);
    assert_eq!(answer(&balloon, &memory, 2, (0x8_8000, 0x2_8000)), 1);
    assert_eq!([0x8_ffff, 0x9_0000, 0xa_ffff, 0xb_0000].map(|at| byte(&memory, at)), [0xaa, 0, 0, 0xaa]);
    // Over the end of RAM, and of all addresses.
    assert_eq!(answer(&balloon, &memory, 2, (0xf_0000, u32::MAX)), 1);
    assert_eq!(answer(&balloon, &memory, 2, (u64::MAX - 0xfff, u32::MAX)), 1);
    assert_eq!([0xe_ffff, 0xf_0000].map(|at| byte(&memory, at)), [0xaa, 0]);
    assert_eq!(byte(&memory, 0x20_0000), 0xaa);
}

#[test]
fn while_it_is_held_no_page_changes_and_the_request_waits() {
    let (memory, _file) = ram();
    fill(&memory);
    let balloon = Balloon::new("balloon0", true).unwrap();
    balloon.hold();
    assert_eq!(answer(&balloon, &memory, 2, (0x8_0000, 0x1000)), 0);
    assert_eq!(byte(&memory, 0x8_0000), 0xaa);
    balloon.release();
    assert_eq!(answer(&balloon, &memory, 2, (0x8_0000, 0x1000)), 1);
    assert_eq!(byte(&memory, 0x8_0000), 0);
}

#[test]
fn its_size_is_in_its_configuration_and_comes_through_the_wire() {
    let source = Balloon::new("balloon0", true).unwrap();
    source.set_target((64 << 20) + 1);
    source.write_config(4, &0x1000_u32.to_le_bytes());
    source.write_config(0, &[0xff; 4]);
    let state = || saved(|out| source.save(3, out).unwrap());
    let target = Balloon::new("balloon0", true).unwrap();
    target.load(3, &mut state()).unwrap();
    let mut config = [0xff; 10];
    target.read_config(0, &mut config);
    assert_eq!(config, [0, 0x40, 0, 0, 0, 0x10, 0, 0, 0, 0]);
    assert_eq!(target.actual(), 16 << 20);
    let other = Balloon::new("balloon0", false).unwrap();
    let error = other.load(3, &mut state()).unwrap_err().to_string();
    assert!(error.contains("free page reporting on; expected free page reporting off"), "{error}");
}
