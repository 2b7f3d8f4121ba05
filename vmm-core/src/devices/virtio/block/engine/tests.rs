//! Both engines against the same table.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl_iowr_nr;

use super::*;
use crate::devices::virtio::block::image::tests::LoopDevice;
use crate::devices::virtio::block::{BlockConfig, Image, ImageKind};
use crate::devices::virtio::buffers::GuestBuffers;

/// Makes an engine; `None`, said aloud, where this host has none of the kind.
type Make = fn(&Backing, u16) -> Option<Box<dyn Engine>>;

#[expect(clippy::unnecessary_wraps, reason = "it is a `Make`")]
fn make_threads(backing: &Backing, _depth: u16) -> Option<Box<dyn Engine>> {
    Some(Box::new(ThreadEngine::new(backing.clone()).unwrap()))
}

fn make_uring(backing: &Backing, depth: u16) -> Option<Box<dyn Engine>> {
    match UringEngine::new(backing.clone(), depth) {
        Ok(engine) => Some(Box::new(engine)),
        Err(e) => {
            crate::testing::skip("lab", format!("no io_uring: {e}"));
            None
        }
    }
}

macro_rules! both {
    ($($name:ident),* $(,)?) => {
        mod by_threads { $(#[test] fn $name() { super::$name(super::make_threads); })* }
        mod by_uring { $(#[test] fn $name() { super::$name(super::make_uring); })* }
    };
}

both!(
    what_is_written_is_read_back,
    random_requests_on_a_file_agree_with_a_model,
    random_requests_on_a_file_system_in_memory_agree_with_a_model,
    random_requests_with_direct_io_agree_with_a_model,
    random_requests_on_a_block_device_agree_with_a_model,
    an_image_that_ends_early_fails_the_request_and_no_other,
    more_requests_than_the_engine_does_at_a_time_are_all_done,
    the_event_tells_of_what_is_done,
    draining_ends_at_its_deadline_and_names_the_oldest_request,
    a_frozen_file_system_holds_writes_up_until_it_thaws,
    a_request_outlives_the_thread_that_asked_for_it,
    a_request_under_way_keeps_its_memory_when_the_engine_goes,
    a_write_that_the_file_is_not_open_for_fails,
);

const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(30);

fn memory() -> Arc<GuestMemoryMmap> {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap())
}

fn buffers(memory: &Arc<GuestMemoryMmap>, pieces: &[(u64, u32)]) -> GuestBuffers {
    let mut buffers = GuestBuffers::new(memory.clone());
    for (addr, len) in pieces {
        buffers.push(GuestAddress(*addr), *len).unwrap();
    }
    buffers
}

fn backing(file: File) -> Backing {
    Backing { file: Arc::new(file), kind: ImageKind::File, direct: None }
}

fn file(len: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(len).unwrap();
    file
}

/// Drains and gives the answers by token.
fn drain(engine: &mut dyn Engine) -> HashMap<u64, io::Result<()>> {
    let mut done = Vec::new();
    engine.drain(Instant::now() + PATIENCE, &mut done).unwrap();
    assert_eq!(engine.in_flight(), 0);
    done.into_iter().map(|completion| (completion.token, completion.result)).collect()
}

fn what_is_written_is_read_back(make: Make) {
    let memory = memory();
    let backing = backing(file(MIB));
    let Some(mut engine) = make(&backing, 8) else { return };
    memory.write_slice(b"one two three", GuestAddress(100)).unwrap();
    let from = buffers(&memory, &[(100, 4), (108, 5), (104, 4)]);
    engine.submit(7, Operation::Write { offset: 1000, from, durable: true });
    assert!(drain(&mut *engine).remove(&7).unwrap().is_ok());
    let mut seen = [0; 13];
    backing.file.read_exact_at(&mut seen, 1000).unwrap();
    assert_eq!(&seen, b"one threetwo ");
    engine.submit(8, Operation::Flush);
    engine.submit(9, Operation::Read { offset: 1004, into: buffers(&memory, &[(5000, 1), (6000, 4)]) });
    engine.submit(10, Operation::Read { offset: 0, into: buffers(&memory, &[]) });
    let answers = drain(&mut *engine);
    assert!(answers.len() == 3 && answers.values().all(Result::is_ok), "{answers:?}");
    assert_eq!(memory.read_obj::<u8>(GuestAddress(5000)).unwrap(), b't');
    assert_eq!(memory.read_obj::<[u8; 4]>(GuestAddress(6000)).unwrap(), *b"hree");
}

/// A generator of numbers that are the same in each run (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// What a slot's request must have done when it is answered.
enum Expected {
    Contents(GuestBuffers, Vec<u8>),
    Nothing,
}

/// Bytes of RAM for each of the requests in flight.
const SLOT: u64 = 256 << 10;

/// 32 requests at a time, of all kinds, at random places that do not overlap while in flight; every read must find
/// what the model holds, and so must the image in the end. `unit` is what offsets and lengths are multiples of;
/// `shift` puts the buffers off their alignment. `plain` is the image opened to look at.
fn compare_with_a_model(make: Make, backing: &Backing, plain: &File, unit: u64, shift: u64) {
    let memory = memory();
    let size = 4 * MIB;
    let mut model = vec![0_u8; size as usize];
    plain.read_exact_at(&mut model, 0).unwrap();
    let Some(mut engine) = make(backing, 16) else { return };
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let mut slots: HashMap<u64, (std::ops::Range<u64>, Expected)> = HashMap::new();
    let (mut asked, mut done) = (0, Vec::new());
    while asked < 1000 || !slots.is_empty() {
        for token in 0..32 {
            if asked == 1000 {
                break;
            }
            let offset = numbers.below(size / unit) * unit;
            let len = ((numbers.below(40) + 1) * unit).min(SLOT / 2 / unit * unit).min(size - offset);
            let range = offset..offset + len;
            let busy =
                |(other, _): &(std::ops::Range<u64>, _)| other.start < range.end && range.start < other.end;
            if slots.contains_key(&token) || slots.values().any(busy) {
                continue;
            }
            asked += 1;
            let at = token * SLOT + shift;
            let cut = numbers.below(len + 1) as u32;
            let pieces = [(at, cut), (at + u64::from(cut) + shift, len as u32 - cut)];
            let place = &mut model[offset as usize..(offset + len) as usize];
            let (operation, expected) = match numbers.below(10) {
                0..=3 => {
                    let into = buffers(&memory, &pieces);
                    let expected = Expected::Contents(buffers(&memory, &pieces), place.to_vec());
                    (Operation::Read { offset, into }, expected)
                }
                4..=7 => {
                    place.fill_with(|| numbers.below(256) as u8);
                    let from = buffers(&memory, &pieces);
                    assert_eq!(from.copy_in(place), len as usize);
                    let durable = numbers.below(8) == 0;
                    (Operation::Write { offset, from, durable }, Expected::Nothing)
                }
                8 => {
                    place.fill(0);
                    let (unmap, durable) = (numbers.below(2) == 0, numbers.below(4) == 0);
                    (Operation::WriteZeroes { offset, len, unmap, durable }, Expected::Nothing)
                }
                _ => (Operation::Flush, Expected::Nothing),
            };
            slots.insert(token, (range, expected));
            engine.submit(token, operation);
        }
        engine.kick();
        super::wait(engine.event(), Duration::from_millis(100));
        engine.reap(&mut done);
        for completion in done.drain(..) {
            completion.result.unwrap();
            let (range, expected) = slots.remove(&completion.token).unwrap();
            if let Expected::Contents(found, contents) = expected {
                let mut seen = vec![0; contents.len()];
                found.copy_out(&mut seen);
                assert!(seen == contents, "the read of {range:?} found something else");
            }
        }
    }
    let mut image = vec![0; size as usize];
    plain.read_exact_at(&mut image, 0).unwrap();
    assert!(image == model, "the image is not what was written");
}

fn random_requests_on_a_file_agree_with_a_model(make: Make) {
    let backing = backing(file(4 * MIB));
    compare_with_a_model(make, &backing, &backing.file, 512, 3);
}

fn random_requests_on_a_file_system_in_memory_agree_with_a_model(make: Make) {
    // It cannot zero a range in place.
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.set_len(4 * MIB).unwrap();
    let backing = backing(file);
    compare_with_a_model(make, &backing, &backing.file, 512, 0);
}

fn config(path: &Path, direct: bool) -> BlockConfig {
    toml::from_str(&format!("path = {path:?}\ndirect = {direct}")).unwrap()
}

fn random_requests_with_direct_io_agree_with_a_model(make: Make) {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(4 * MIB).unwrap();
    let open = match Image::open(&config(image.path(), true)) {
        Ok(open) => open,
        Err(e) => {
            eprintln!("skipped: {e}");
            return;
        }
    };
    // With buffers as direct I/O wants them, and with ones that it does not take.
    for shift in [0, 4096, 8] {
        let unit = u64::from(open.block_size());
        compare_with_a_model(make, open.backing(), image.as_file(), unit, shift);
    }
    large_and_crooked(make, open.backing());
}

/// More than is copied at a time.
fn large_and_crooked(make: Make, backing: &Backing) {
    let memory = memory();
    let Some(mut engine) = make(backing, 4) else { return };
    let len = 2 * MIB + 512 * 1024;
    let pattern: Vec<u8> = (0..len).map(|i| (i / 511) as u8).collect();
    memory.write_slice(&pattern, GuestAddress(1)).unwrap();
    let from = buffers(&memory, &[(1, len as u32)]);
    engine.submit(0, Operation::Write { offset: 4096, from, durable: false });
    assert!(drain(&mut *engine)[&0].is_ok());
    let into = buffers(&memory, &[(8 * MIB + 3, 1000), (8 * MIB + 1003, len as u32 - 1000)]);
    engine.submit(1, Operation::Read { offset: 4096, into });
    assert!(drain(&mut *engine)[&1].is_ok());
    let mut seen = vec![0; len as usize];
    memory.read_slice(&mut seen, GuestAddress(8 * MIB + 3)).unwrap();
    assert!(seen == pattern);
}

fn random_requests_on_a_block_device_agree_with_a_model(make: Make) {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(4 * MIB).unwrap();
    let Some(device) = LoopDevice::over(image.path(), &[]) else { return };
    let open = Image::open(&config(&device.0, false)).unwrap();
    compare_with_a_model(make, open.backing(), &open.backing().file, 512, 5);
    let Some(mut engine) = make(open.backing(), 4) else { return };
    engine.submit(0, Operation::Discard { offset: MIB, len: MIB });
    assert!(drain(&mut *engine)[&0].is_ok());
    let mut seen = vec![1; MIB as usize];
    open.backing().file.read_exact_at(&mut seen, MIB).unwrap();
    assert!(seen.iter().all(|byte| *byte == 0), "a loop device discards by punching a hole");
}

fn an_image_that_ends_early_fails_the_request_and_no_other(make: Make) {
    let memory = memory();
    let backing = backing(file(8192));
    let Some(mut engine) = make(&backing, 8) else { return };
    backing.file.set_len(6000).unwrap();
    engine.submit(0, Operation::Read { offset: 4096, into: buffers(&memory, &[(0, 4096)]) });
    engine.submit(1, Operation::Read { offset: 0, into: buffers(&memory, &[(8192, 4096)]) });
    let answers = drain(&mut *engine);
    assert!(answers[&0].as_ref().unwrap_err().to_string().contains("ends before its size"));
    assert!(answers[&1].is_ok());
}

fn more_requests_than_the_engine_does_at_a_time_are_all_done(make: Make) {
    let memory = memory();
    let backing = backing(file(MIB));
    let Some(mut engine) = make(&backing, 4) else { return };
    for token in 0..500_u64 {
        memory.write_obj(token, GuestAddress(token * 8)).unwrap();
        let from = buffers(&memory, &[(token * 8, 8)]);
        engine.submit(token, Operation::Write { offset: token * 1000, from, durable: false });
    }
    let answers = drain(&mut *engine);
    assert!(answers.len() == 500 && answers.values().all(Result::is_ok));
    for token in 0..500_u64 {
        let mut seen = [0; 8];
        backing.file.read_exact_at(&mut seen, token * 1000).unwrap();
        assert_eq!(u64::from_le_bytes(seen), token);
    }
}

fn the_event_tells_of_what_is_done(make: Make) {
    let Some(mut engine) = make(&backing(file(MIB)), 4) else { return };
    for (token, operation) in
        [Operation::Flush, Operation::Discard { offset: 0, len: 0 }].into_iter().enumerate()
    {
        assert!(engine.event().read().is_err(), "it rings before anything was asked");
        engine.submit(token as u64, operation);
        engine.kick();
        let began = Instant::now();
        super::wait(engine.event(), PATIENCE);
        assert!(began.elapsed() < PATIENCE);
        let mut done = Vec::new();
        engine.reap(&mut done);
        assert_eq!(done.len(), 1);
    }
}

/// A backing that does not answer before something is written into it. Its position is -1: where the stream is.
fn stalled() -> (Backing, File) {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    (backing(reader.into()), writer.into())
}

const STREAM: u64 = u64::MAX;

fn draining_ends_at_its_deadline_and_names_the_oldest_request(make: Make) {
    let memory = memory();
    let (backing, mut writer) = stalled();
    let Some(mut engine) = make(&backing, 4) else { return };
    engine.submit(1, Operation::Read { offset: STREAM, into: buffers(&memory, &[(0, 5)]) });
    let began = Instant::now();
    engine.submit(2, Operation::Flush);
    let mut done = Vec::new();
    let limit = Duration::from_millis(60);
    let error = engine.drain(began + limit, &mut done).unwrap_err();
    let took = began.elapsed();
    assert!(took >= limit && took < limit * 20, "{took:?}");
    assert!(error.count == 1 && error.oldest == "read" && error.age >= limit, "{error}");
    assert!(
        error.to_string().starts_with(
            "requests without an answer from the host's disk: 1; the oldest, a read, has waited "
        )
    );
    // What was done is not lost, a pipe's refusal to be synced, and the rest goes on.
    assert!(done.len() == 1 && done[0].token == 2, "{done:?}");
    writer.write_all(b"later").unwrap();
    assert!(drain(&mut *engine)[&1].is_ok());
    assert_eq!(memory.read_obj::<[u8; 5]>(GuestAddress(0)).unwrap(), *b"later");
}

fn a_frozen_file_system_holds_writes_up_until_it_thaws(make: Make) {
    on_a_file_system(move |directory| {
        let memory = memory();
        let image = File::options().read(true).write(true).create_new(true).open(directory.join("disk.img"));
        let backing = backing(image.unwrap());
        backing.file.set_len(MIB).unwrap();
        let Some(mut engine) = make(&backing, 4) else { return };
        let frozen = Frozen::of(directory);
        let write = |engine: &mut dyn Engine, token: u64| {
            let from = buffers(&memory, &[(token * 4096, 4096)]);
            engine.submit(token, Operation::Write { offset: token * 4096, from, durable: true });
        };
        memory.write_slice(&[0xa5; 3 * 4096], GuestAddress(0)).unwrap();
        (0..3).for_each(|token| write(&mut *engine, token));
        let mut done = Vec::new();
        let began = Instant::now();
        let error = engine.drain(began + Duration::from_millis(100), &mut done).unwrap_err();
        assert!((error.count, error.oldest) == (3, "write") && done.is_empty(), "{error}");
        assert!(began.elapsed() < Duration::from_secs(2), "the engine waited with the disk");
        drop(frozen);
        assert!(drain(&mut *engine).values().all(Result::is_ok));
        let mut seen = vec![0; 3 * 4096];
        backing.file.read_exact_at(&mut seen, 0).unwrap();
        assert!(seen.iter().all(|byte| *byte == 0xa5));
    });
}

/// Runs a test with an ext4 of its own, mounted where nobody else sees it; says so where that is not to be had.
fn on_a_file_system(test: impl FnOnce(&Path) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(16 * MIB).unwrap();
        let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(image.path()).output();
        if !made.as_ref().is_ok_and(|output| output.status.success()) {
            return crate::testing::skip("lab", format!("no ext4: {made:?}"));
        }
        let Some(device) = LoopDevice::over(image.path(), &[]) else { return };
        let directory = tempfile::tempdir().unwrap();
        let mounted = unshare(CloneFlags::CLONE_NEWNS)
            .and_then(|()| mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE))
            .and_then(|()| mount(Some(&device.0), directory.path(), Some("ext4"), MsFlags::empty(), NONE));
        match mounted {
            Ok(()) => test(directory.path()),
            Err(e) => crate::testing::skip("lab", format!("no mount namespace: {e}")),
        }
        // The mount goes with the namespace; the loop device is detached once it is gone.
    });
    thread.join().unwrap();
}

const NONE: Option<&str> = None;

/// A file system that takes no writes; it thaws with this value, and after 5 s whatever happens.
struct Frozen(std::sync::mpsc::Sender<()>, Option<std::thread::JoinHandle<()>>);

impl Frozen {
    fn of(directory: &Path) -> Self {
        ioctl_iowr_nr!(FIFREEZE, 0x58, 119, libc::c_int);
        ioctl_iowr_nr!(FITHAW, 0x58, 120, libc::c_int);
        let root = File::open(directory).unwrap();
        // SAFETY: it takes no argument.
        assert_eq!(unsafe { ioctl(&root, FIFREEZE()) }, 0, "{}", io::Error::last_os_error());
        let (thaw, told) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let _ = told.recv_timeout(Duration::from_secs(5));
            // SAFETY: as above.
            assert_eq!(unsafe { ioctl(&root, FITHAW()) }, 0);
        });
        Self(thaw, Some(thread))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = self.0.send(());
        self.1.take().unwrap().join().unwrap();
    }
}

fn a_request_outlives_the_thread_that_asked_for_it(make: Make) {
    let memory = memory();
    let (backing, mut writer) = stalled();
    let Some(mut engine) = make(&backing, 4) else { return };
    let into = buffers(&memory, &[(0, 5)]);
    let asking = std::thread::spawn(move || {
        engine.submit(1, Operation::Read { offset: STREAM, into });
        engine.kick();
        engine
    });
    let mut engine = asking.join().unwrap();
    let mut done = Vec::new();
    engine.drain(Instant::now() + Duration::from_millis(50), &mut done).unwrap_err();
    writer.write_all(b"later").unwrap();
    assert!(drain(&mut *engine)[&1].is_ok());
    assert_eq!(memory.read_obj::<[u8; 5]>(GuestAddress(0)).unwrap(), *b"later");
}

fn a_request_under_way_keeps_its_memory_when_the_engine_goes(make: Make) {
    let memory = memory();
    let (backing, mut writer) = stalled();
    let Some(mut engine) = make(&backing, 4) else { return };
    engine.submit(1, Operation::Read { offset: STREAM, into: buffers(&memory, &[(0, 5)]) });
    engine.kick();
    super::wait(engine.event(), Duration::from_millis(50));
    drop(engine);
    assert!(Arc::strong_count(&memory) > 1, "RAM would be unmapped under the kernel's hands");
    // Nobody need be there to read it any more.
    let _ = writer.write_all(b"later");
}

fn a_write_that_the_file_is_not_open_for_fails(make: Make) {
    let memory = memory();
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(MIB).unwrap();
    let Some(mut engine) = make(&backing(File::open(image.path()).unwrap()), 4) else { return };
    let from = buffers(&memory, &[(0, 512)]);
    engine.submit(0, Operation::Write { offset: 0, from, durable: false });
    engine.submit(1, Operation::WriteZeroes { offset: 0, len: 512, unmap: false, durable: false });
    let answers = drain(&mut *engine);
    assert!(answers.len() == 2 && answers.values().all(Result::is_err), "{answers:?}");
}

#[test]
fn without_io_uring_threads_stand_in_and_a_choice_is_refused() {
    let backing = backing(file(MIB));
    // The filter is this thread's, and that of those it starts.
    let thread = std::thread::spawn(move || {
        refuse(libc::SYS_io_uring_setup);
        assert_eq!(UringEngine::new(backing.clone(), 4).err().unwrap().raw_os_error(), Some(libc::EPERM));
        assert!(open(&backing, Some(Aio::IoUring), 4).is_err());
        for aio in [None, Some(Aio::Threads)] {
            let mut engine = open(&backing, aio, 4).unwrap();
            engine.submit(3, Operation::Flush);
            assert!(drain(&mut *engine)[&3].is_ok());
        }
    });
    thread.join().unwrap();
}

/// Has the kernel answer EPERM to a system call of this thread, as containers do.
fn refuse(call: libc::c_long) {
    let filter = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let errno = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let mut filters = [
        filter(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        filter(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, call as u32),
        filter(libc::BPF_RET | libc::BPF_K, 0, 0, errno),
        filter(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filters.len() as u16, filter: filters.as_mut_ptr() };
    // SAFETY: the kernel copies the program; it only answers one call otherwise.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program), 0);
    }
}
