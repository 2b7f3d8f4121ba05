//! The device with a queue in its hands.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::devices::virtio::{Run, VirtioDevice, driver};

/// Puts one chain of these buffers (address, bytes, writable) in a queue, lets the device answer, and gives the bytes that
/// it says it has written, or whether it needs a reset.
fn answer(memory: &Arc<GuestMemoryMmap>, buffers: &[(u64, u32, bool)]) -> Result<u32, ()> {
    for (at, (address, length, writable)) in buffers.iter().enumerate() {
        let descriptor = GuestAddress(0x1000 + 16 * at as u64);
        let flags = u16::from(*writable) << 1 | u16::from(at + 1 < buffers.len());
        memory.write_obj(*address, descriptor).unwrap();
        memory.write_obj(*length, GuestAddress(descriptor.0 + 8)).unwrap();
        memory.write_obj(flags, GuestAddress(descriptor.0 + 12)).unwrap();
        memory.write_obj(at as u16 + 1, GuestAddress(descriptor.0 + 14)).unwrap();
    }
    memory.write_obj(1_u16, GuestAddress(0x2002)).unwrap();
    let interrupt = driver::interrupt(1);
    let queue = driver::queue(0, 64, [0x1000, 0x2000, 0x3000], &interrupt);
    let device = Rng::new("rng0").unwrap();
    device.start(Run { memory: Arc::clone(memory), features: 0, queues: vec![queue] }).unwrap();
    device.stop(Instant::now() + Duration::from_secs(5)).unwrap();
    if interrupt.is_reset_needed() {
        return Err(());
    }
    assert_eq!(memory.read_obj::<u16>(GuestAddress(0x3002)).unwrap(), 1);
    Ok(memory.read_obj(GuestAddress(0x3008)).unwrap())
}

fn memory() -> Arc<GuestMemoryMmap> {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap())
}

#[test]
fn every_writable_buffer_is_filled_and_no_other_byte() {
    let memory = memory();
    assert_eq!(answer(&memory, &[(0x5000, 8, false), (0x6000, 1000, true), (0x8000, 24, true)]), Ok(1024));
    let zeros = |at, length| {
        let mut bytes = vec![0; length];
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes.into_iter().filter(|byte| *byte == 0_u8).count()
    };
    assert_eq!((zeros(0x5000, 8), zeros(0x63e8, 1000), zeros(0x8018, 1000)), (8, 1000, 1000));
    assert!(zeros(0x6000, 1000) < 50 && zeros(0x8000, 24) < 8);
}

#[test]
fn a_request_is_bounded() {
    assert_eq!(answer(&memory(), &[(0x1_0000, 0x4_0000, true)]), Ok(MAX_REQUEST as u32));
}

#[test]
fn a_buffer_outside_ram_needs_a_reset() {
    for address in [1 << 20, (1 << 20) - 1, u64::MAX, u64::MAX - 300] {
        assert_eq!(answer(&memory(), &[(address, 512, true)]), Err(()), "{address:#x}");
    }
}
