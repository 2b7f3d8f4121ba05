use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::mpsc::{Receiver, channel};

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::config::{Backing, ByteSize, MemoryConfig};
use crate::cpr::reboot::copy::chunk::CHUNK;
use crate::cpr::reboot::copy::{ChunkState, DATA, write};
use crate::memory::{GuestRam, RAM, RamBlock};

const PAGE: u64 = 4096;
const CHUNKS: u64 = 12;
const SIZE: u64 = CHUNKS * CHUNK + 3 * PAGE;
/// Has no data.
const ZEROS: u64 = 7;
/// Long enough for a thread that was let go to have gone on.
const SHORT: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(20);

fn block() -> RamBlock {
    RamBlock::create(RAM, &MemoryConfig { size: ByteSize(SIZE), backing: Backing::Memfd }).unwrap()
}

/// What a page begins with: every fourth is zeros.
fn pattern(page: u64) -> u64 {
    if page / CHUNK == ZEROS || (page / PAGE).is_multiple_of(4) { 0 } else { page | 1 }
}

fn pages() -> impl Iterator<Item = u64> {
    (0..SIZE).step_by(PAGE as usize)
}

/// RAM that comes in, of a guest that has saved it.
struct Guest {
    arrival: Option<Arrival>,
    ram: Arc<GuestRam>,
    block: RamBlock,
    lost: Receiver<String>,
}

impl Guest {
    /// None where this process may not wait for pages. `harm` does something to the file.
    fn saved(harm: impl FnOnce(&File, &Copied)) -> Option<Self> {
        let old = block();
        for page in pages().filter(|page| pattern(*page) != 0) {
            old.file().write_all_at(&pattern(page).to_ne_bytes(), page).unwrap();
        }
        let file = tempfile::tempfile().unwrap();
        let written = write(&old, &file, &|| false, &|_, _| {}).unwrap();
        let copied = Copied::new(written.state, file.try_clone().unwrap(), DATA..written.end).unwrap();
        harm(&file, &copied);
        let block = block();
        let ram = Arc::new(GuestRam::map(&block, &[(GuestAddress(0), 0, SIZE)]).unwrap());
        let missing = match MissingPages::of(&ram) {
            Ok(missing) => missing,
            Err(error) => {
                crate::testing::skip("lab", error);
                return None;
            }
        };
        let (tell, lost) = channel();
        let tell: Lost = Arc::new(move |why| {
            let _ = tell.send(why.to_string());
        });
        let arrival = Arrival::begin(Arc::new(copied), missing, SIZE, tell).unwrap();
        Some(Self { arrival: Some(arrival), ram, block, lost })
    }

    fn arrival(&self) -> &Arrival {
        self.arrival.as_ref().unwrap()
    }

    fn touch(&self, page: u64) -> JoinHandle<u64> {
        let ram = Arc::clone(&self.ram);
        thread::spawn(move || ram.memory().read_obj(GuestAddress(page)).unwrap())
    }

    fn finds(&self, page: u64) -> u64 {
        self.touch(page).join().unwrap()
    }

    fn finds_by_file(&self, page: u64) -> u64 {
        let mut found = [0; 8];
        self.block.file().read_exact_at(&mut found, page).unwrap();
        u64::from_ne_bytes(found)
    }
}

/// One byte of a chunk is wrong.
fn damage(chunk: u64) -> impl FnOnce(&File, &Copied) {
    move |file, copied| {
        let at = copied.chunks().iter().find(|found| u64::from(found.index) == chunk).unwrap().offset + 5;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    }
}

#[test]
fn until_the_guest_runs_only_what_is_touched_is_read_and_then_the_rest() {
    let Some(guest) = Guest::saved(|_, _| ()) else { return };
    let total = SIZE - CHUNK;
    assert_eq!(guest.arrival().outstanding(), Some((0, total)));
    let page = 5 * CHUNK + 3 * PAGE;
    for page in [page, page + PAGE, ZEROS * CHUNK + PAGE] {
        assert_eq!(guest.finds(page), pattern(page));
    }
    assert_eq!(guest.arrival().outstanding(), Some((CHUNK, total)));
    assert!(!guest.arrival().wait(&|| true));

    let (tell, told) = channel();
    guest.arrival().then(Box::new(move || tell.send(()).unwrap()));
    guest.arrival().claim().unwrap();
    guest.arrival().go();
    // Wherever they look while it comes in, in no order.
    thread::scope(|scope| {
        for step in [1, 3, 5, 7] {
            let guest = &guest;
            let memory = guest.ram.memory();
            scope.spawn(move || {
                for page in pages().map(|page| page * step % (SIZE / PAGE * PAGE)) {
                    let found: u64 = memory.read_obj(GuestAddress(page)).unwrap();
                    assert_eq!(found, pattern(page), "{page:#x}");
                }
            });
        }
    });
    assert!(guest.arrival().wait(&|| false));
    assert_eq!(guest.arrival().outstanding(), None);
    told.try_recv().unwrap();
    for page in pages() {
        assert_eq!(guest.finds_by_file(page), pattern(page), "{page:#x}");
    }
    assert!(guest.lost.try_recv().is_err());
}

#[test]
fn pages_of_zeros_take_no_room() {
    let Some(guest) = Guest::saved(|_, _| ()) else { return };
    guest.arrival().claim().unwrap();
    guest.arrival().go();
    assert!(guest.arrival().wait(&|| false));
    let data = pages().filter(|page| pattern(*page) != 0).count() as u64 * PAGE;
    assert_eq!(guest.block.file().metadata().unwrap().blocks() * 512, data);
}

#[test]
fn what_the_guest_has_given_back_is_zeros_and_keeps_nobody_waiting() {
    let Some(guest) = Guest::saved(|_, _| ()) else { return };
    let page = 2 * CHUNK + PAGE;
    assert_eq!(guest.finds(page), pattern(page));
    let punch =
        nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
    nix::fcntl::fallocate(&**guest.block.file(), punch, page as i64, PAGE as i64).unwrap();
    assert_eq!(guest.finds(page), 0);
    guest.arrival().claim().unwrap();
    guest.arrival().go();
    assert!(guest.arrival().wait(&|| false));
    assert_eq!(guest.finds(page), 0);
}

#[test]
fn a_damaged_chunk_that_is_needed_before_the_claim_refuses_the_guest_and_keeps_nobody_waiting() {
    let Some(guest) = Guest::saved(damage(3)) else { return };
    assert_eq!(guest.finds(5 * CHUNK + PAGE), pattern(5 * CHUNK + PAGE));
    guest.finds(3 * CHUNK + PAGE);
    let refused = guest.arrival().claim().unwrap_err();
    assert!(matches!(refused, CopyError::Damaged { at, .. } if at == 3 * CHUNK), "{refused}");
    assert!(guest.lost.try_recv().is_err());
}

#[test]
fn who_asks_whether_the_guest_is_refused_has_not_claimed_it() {
    let Some(guest) = Guest::saved(damage(3)) else { return };
    assert!(guest.arrival().refused().is_none());
    guest.finds(3 * CHUNK + PAGE);
    assert!(guest.lost.try_recv().is_err());
    assert!(matches!(guest.arrival().refused(), Some(CopyError::Damaged { .. })));
    assert!(guest.arrival().claim().is_err());
}

#[test]
fn a_damaged_chunk_of_a_guest_that_runs_is_lost_and_nobody_finds_anything_in_its_place() {
    let Some(mut guest) = Guest::saved(damage(3)) else { return };
    guest.arrival().claim().unwrap();
    let waits = guest.touch(3 * CHUNK + PAGE);
    let why = guest.lost.recv_timeout(LONG).unwrap();
    assert!(why.contains("RAM at 0x300000: checksum"), "{why}");
    thread::sleep(SHORT);
    assert!(!waits.is_finished());
    // There is no guest any more.
    drop(guest.arrival.take());
    assert_eq!(waits.join().unwrap(), 0);
}

#[test]
fn a_damaged_chunk_that_nobody_touches_is_found_when_all_is_read() {
    let Some(guest) = Guest::saved(damage(CHUNKS)) else { return };
    guest.arrival().claim().unwrap();
    guest.arrival().go();
    let why = guest.lost.recv_timeout(LONG).unwrap();
    assert!(why.contains("RAM at 0xc00000: checksum"), "{why}");
    assert!(guest.arrival().outstanding().is_some());
}

#[test]
fn a_page_that_somebody_else_has_made_is_not_taken_for_the_guests() {
    let Some(guest) = Guest::saved(|_, _| ()) else { return };
    guest.block.file().write_all_at(&[1], 4 * CHUNK + PAGE).unwrap();
    guest.arrival().claim().unwrap();
    guest.arrival().go();
    let why = guest.lost.recv_timeout(LONG).unwrap();
    assert!(why.contains("filling RAM at 0x401000") && why.contains("File exists"), "{why}");
}

#[test]
fn a_file_that_says_what_cannot_be_is_refused_at_once() {
    let Some(guest) = Guest::saved(|_, _| ()) else { return };
    let file = tempfile::tempfile().unwrap();
    let mut state = write(&guest.block, &file, &|| false, &|_, _| {}).unwrap().state;
    state.chunks = vec![ChunkState { index: 0, offset: 0, stored: 1, crc: 0 }];
    let copied = Copied::new(state, file, DATA..DATA).unwrap();
    assert!(matches!(copied.bytes(SIZE), Err(CopyError::Impossible { .. })));
}
