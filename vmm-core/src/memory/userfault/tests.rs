use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread;

use nix::sys::eventfd::EventFd;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::config::{Backing, ByteSize, MemoryConfig};
use crate::memory::RamBlock;

const SIZE: u64 = 4 << 20;
const HIGH: u64 = 4 << 30;

/// RAM in two windows, none of whose pages are there; none where this process may not wait for pages.
fn missing() -> Option<(RamBlock, Arc<GuestRam>, MissingPages)> {
    let config = MemoryConfig { size: ByteSize(SIZE), backing: Backing::Memfd };
    let block = RamBlock::create(RAM, &config).unwrap();
    let half = SIZE / 2;
    let ram = GuestRam::map(&block, &[(GuestAddress(0), 0, half), (GuestAddress(HIGH), half, half)]);
    let ram = Arc::new(ram.unwrap());
    match MissingPages::of(&ram) {
        Ok(pages) => Some((block, ram, pages)),
        Err(error) => {
            crate::testing::skip("lab", error);
            None
        }
    }
}

fn reads(ram: &Arc<GuestRam>, at: u64) -> thread::JoinHandle<u8> {
    let ram = Arc::clone(ram);
    thread::spawn(move || ram.memory().read_obj(GuestAddress(at)).unwrap())
}

#[test]
fn whoever_touches_a_page_waits_until_it_is_put_in_and_finds_it_whole() {
    let Some((block, ram, pages)) = missing() else { return };
    let end = EventFd::new().unwrap();
    for (guest, offset) in [(5 * PAGE_SIZE + 7, 5 * PAGE_SIZE), (HIGH + 1, SIZE / 2)] {
        let reader = reads(&ram, guest);
        assert!(pages.wait(end.as_fd()).unwrap());
        assert_eq!(pages.next().unwrap(), Some(offset));
        assert!(!reader.is_finished());
        pages.put(offset, &[7; PAGE_SIZE as usize]).unwrap();
        assert_eq!(reader.join().unwrap(), 7);
    }
    // Across both windows.
    let offset = SIZE / 2 - PAGE_SIZE;
    let twice = pages.put(offset, &[9; 2 * PAGE_SIZE as usize]).unwrap_err();
    assert_eq!(twice.raw_os_error(), Some(libc::EEXIST), "its second page is there");
    let mut seen = [0; 2];
    block.file().read_exact_at(&mut seen, SIZE / 2 - 1).unwrap();
    assert_eq!(seen, [9, 7]);
    assert_eq!(pages.next().unwrap(), None);
}

#[test]
fn a_page_of_zeros_is_made_and_one_that_is_there_stays_what_it_is() {
    let Some((_block, ram, pages)) = missing() else { return };
    let reader = reads(&ram, 0);
    pages.put_zeros(0).unwrap();
    assert_eq!(reader.join().unwrap(), 0);
    pages.put(PAGE_SIZE, &[3; PAGE_SIZE as usize]).unwrap();
    pages.put_zeros(PAGE_SIZE).unwrap();
    assert_eq!(reads(&ram, PAGE_SIZE).join().unwrap(), 3);
}

#[test]
fn who_is_let_go_of_finds_zeros() {
    let Some((_block, ram, pages)) = missing() else { return };
    let end = EventFd::new().unwrap();
    let readers = [reads(&ram, 0), reads(&ram, HIGH)];
    assert!(pages.wait(end.as_fd()).unwrap());
    pages.release().unwrap();
    for reader in readers {
        assert_eq!(reader.join().unwrap(), 0);
    }
    end.write(1).unwrap();
    assert!(!pages.wait(end.as_fd()).unwrap());
}
