//! RAM blocks against the kernel: seals, locks, stamps, and descriptors that are not what they claim to be.

use std::fs::{self, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::memory::GuestRam;

const MIB: u64 = 1 << 20;

fn config(size: u64, backing: Backing) -> MemoryConfig {
    MemoryConfig { size: ByteSize(size), backing }
}

fn memfd_block(size: u64) -> RamBlock {
    RamBlock::create(RAM, &config(size, Backing::Memfd)).unwrap()
}

fn file_config(path: &Path) -> MemoryConfig {
    config(MIB, Backing::File { path: path.into() })
}

/// A tmpfs, which is where RAM files live.
fn shm() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

fn travelled(block: &RamBlock) -> (OwnedFd, RamBlockState) {
    (block.file().as_fd().try_clone_to_owned().unwrap(), block.state(Mode::CprTransfer).unwrap())
}

fn adopted(fd: impl Into<OwnedFd>, state: &RamBlockState) -> Result<RamBlock, FdError> {
    RamBlock::adopt(RAM, fd.into(), &config(state.size, Backing::Memfd), state)
}

fn refusal(fd: impl Into<OwnedFd>, state: &RamBlockState) -> String {
    adopted(fd, state).unwrap_err().to_string()
}

fn sealed(size: u64, seals: SealFlag) -> File {
    let flags = MFdFlags::MFD_ALLOW_SEALING | MFdFlags::from_bits_retain(libc::MFD_EXEC);
    let file = File::from(memfd_create("fake", flags).unwrap());
    file.set_len(size).unwrap();
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    file
}

fn blocks_of(file: &File) -> u64 {
    file.metadata().unwrap().blocks()
}

#[test]
fn a_memfd_cannot_be_resized_or_sealed_further_and_has_no_exec_seal() {
    let block = memfd_block(MIB);
    assert!(block.file().set_len(2 * MIB).is_err());
    assert!(block.file().set_len(0).is_err());
    assert!(fcntl(&**block.file(), FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).is_err());
    let seals = fcntl(&**block.file(), FcntlArg::F_GET_SEALS).unwrap();
    assert_eq!(seals, RAM_SEALS.bits());
    assert_ne!(fcntl(&**block.file(), FcntlArg::F_GETFD).unwrap() & libc::FD_CLOEXEC, 0);
}

#[test]
fn a_memfd_is_adopted_with_its_contents() {
    let block = memfd_block(MIB);
    block.file().write_all_at(b"kept", 4096).unwrap();
    let (fd, state) = travelled(&block);
    drop(block);
    let adopted = adopted(fd, &state).unwrap();
    let guest = GuestRam::map(&adopted, &[(GuestAddress(0), 0, MIB)]).unwrap();
    let mut seen = [0; 4];
    guest.memory().read_slice(&mut seen, GuestAddress(4096)).unwrap();
    assert_eq!(&seen, b"kept");
    assert_eq!(adopted.state(Mode::CprTransfer).unwrap(), state);
}

#[test]
fn a_descriptor_of_another_size_is_refused() {
    let state = memfd_block(2 * MIB).state(Mode::CprTransfer).unwrap();
    let (fd, _) = travelled(&memfd_block(MIB));
    let message = refusal(fd, &state);
    assert!(message.contains("'pc.ram' #0 is 1048576 bytes long; expected 2097152"), "{message}");
}

#[test]
fn a_descriptor_of_another_type_is_refused() {
    let state = memfd_block(MIB).state(Mode::CprTransfer).unwrap();
    let (end, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(refusal(end, &state).contains("no regular file"));
    let on_disk = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    on_disk.set_len(MIB).unwrap();
    assert!(refusal(on_disk, &state).contains("shared-memory file"));
    let zero = OpenOptions::new().read(true).write(true).open("/dev/zero").unwrap();
    let dax = RamBlockState { kind: RamKind::Dax, page_size: 2 * MIB, size: 2 * MIB, ..state.clone() };
    assert!(refusal(zero, &dax).contains("no DAX device"));
    let (fd, _) = travelled(&memfd_block(2 * MIB));
    let huge = RamBlockState { kind: RamKind::Hugetlb, page_size: 2 * MIB, size: 2 * MIB, ..state };
    assert!(refusal(fd, &huge).contains("huge pages"));
}

#[test]
fn a_read_only_descriptor_is_refused() {
    let (fd, state) = travelled(&memfd_block(MIB));
    let read_only = File::open(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
    assert!(refusal(read_only, &state).contains("reading and writing"));
}

#[test]
fn a_descriptor_that_is_sealed_against_writing_or_free_to_shrink_is_refused() {
    let state = memfd_block(MIB).state(Mode::CprTransfer).unwrap();
    for seals in [
        RAM_SEALS | SealFlag::F_SEAL_WRITE,
        RAM_SEALS | SealFlag::F_SEAL_FUTURE_WRITE,
        SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL,
        SealFlag::empty(),
    ] {
        let claimed = RamBlockState { seals: seals.bits() as u32, ..state.clone() };
        let message = refusal(sealed(MIB, seals), &claimed);
        assert!(message.contains(&format!("sealed {:#x}", seals.bits())), "{message}");
    }
}

#[test]
fn a_state_that_claims_the_impossible_is_refused() {
    let (_, state) = travelled(&memfd_block(MIB));
    for (size, page_size) in
        [(0, 4096), (u64::MAX, 4096), (MIB + 1, 4096), (MIB, 0), (MIB, 3), (1 << 45, 4096)]
    {
        let claimed = RamBlockState { size, page_size, ..state.clone() };
        assert!(refusal(sealed(MIB, RAM_SEALS), &claimed).contains("said to be"), "{size} {page_size}");
    }
    let renamed = RamBlockState { name: "pc.rom".into(), ..state };
    assert!(refusal(sealed(MIB, RAM_SEALS), &renamed).contains("'pc.rom'"));
}

#[test]
fn a_file_is_made_private_with_a_stamp_page_after_the_ram() {
    let dir = shm();
    let path = dir.path().join("ram");
    let block = RamBlock::create(RAM, &file_config(&path)).unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.len(), meta.permissions().mode() & 0o777), (MIB + 4096, 0o600));
    let stamp = block.stamp_location().unwrap();
    assert_eq!((stamp.offset, stamp.granularity), (MIB, 4096));
    stamp.write(b"tied").unwrap();
    let mut seen = [0; 4];
    block.file().read_exact_at(&mut seen, MIB).unwrap();
    assert_eq!(&seen, b"tied");
    assert!(stamp.write(&[0; 4097]).is_err());
}

#[test]
fn a_stamp_is_kept_until_it_is_cleared() {
    let dir = shm();
    let config = file_config(&dir.path().join("ram"));
    let block = RamBlock::create(RAM, &config).unwrap();
    block.stamp_location().unwrap().write(b"tied").unwrap();
    let state = block.state(Mode::CprReboot).unwrap();
    drop(block);
    let stamp_of = |block: &RamBlock| {
        let mut seen = [0; 4];
        block.stamp_location().unwrap().read(&mut seen).unwrap();
        seen
    };
    assert_eq!(&stamp_of(&RamBlock::reopen(&config, &state).unwrap()), b"tied");
    let booted = RamBlock::create(RAM, &config).unwrap();
    assert_eq!(&stamp_of(&booted), b"tied");
    booted.clear_stamp().unwrap();
    assert_eq!(stamp_of(&booted), [0; 4]);
}

#[test]
fn a_file_in_use_is_refused_by_name_until_the_lock_is_let_go() {
    let dir = shm();
    let config = file_config(&dir.path().join("ram"));
    let first = RamBlock::create(RAM, &config).unwrap();
    first.stamp_location().unwrap().write(b"mine").unwrap();
    let message = RamBlock::create(RAM, &config).unwrap_err().to_string();
    assert!(message.contains("ram is in use by another guest"), "{message}");
    let mut seen = [0; 4];
    first.stamp_location().unwrap().read(&mut seen).unwrap();
    assert_eq!(&seen, b"mine", "a refused boot left its mark");
    first.release_lock().unwrap();
    let second = RamBlock::create(RAM, &config).unwrap();
    assert!(first.acquire_lock().is_err());
    drop(second);
    first.acquire_lock().unwrap();
}

#[test]
fn the_lock_goes_with_the_descriptor() {
    let dir = shm();
    let config = file_config(&dir.path().join("ram"));
    let block = RamBlock::create(RAM, &config).unwrap();
    let (fd, state) = travelled(&block);
    drop(block);
    let adopted = adopted(fd, &state).unwrap();
    assert!(matches!(RamBlock::create(RAM, &config), Err(MemoryError::InUse { .. })));
    // Another descriptor of the same file does not carry the lock.
    let other = OpenOptions::new().read(true).write(true).open(dir.path().join("ram")).unwrap();
    assert!(refusal(other, &state).contains("locked by another guest"));
    drop(adopted);
}

#[test]
fn a_file_of_another_size_or_kind_is_refused_and_left_as_it_was() {
    let dir = shm();
    let path = dir.path().join("ram");
    fs::write(&path, [7; 5000]).unwrap();
    let message = RamBlock::create(RAM, &file_config(&path)).unwrap_err().to_string();
    assert!(message.contains("5000 bytes long; expected 1052672"), "{message}");
    assert_eq!(fs::read(&path).unwrap(), [7; 5000]);
    assert!(RamBlock::create(RAM, &file_config(Path::new("/dev/null"))).is_err());
    assert!(
        RamBlock::create(
            RAM,
            &config(2 * MIB, Backing::Dax { path: "/dev/null".into(), offset: None, pmem: false })
        )
        .is_err()
    );
}

#[test]
fn what_is_reopened_must_be_there_and_as_it_was() {
    let dir = shm();
    let path = dir.path().join("ram");
    let state = RamBlock::create(RAM, &file_config(&path)).unwrap().state(Mode::CprReboot).unwrap();
    let other_size = config(2 * MIB, Backing::File { path: path.clone() });
    assert!(RamBlock::reopen(&other_size, &state).unwrap_err().to_string().contains("1M; expected 2M"));
    assert!(RamBlock::reopen(&config(MIB, Backing::Memfd), &state).is_err());
    fs::write(&path, b"").unwrap();
    assert!(RamBlock::reopen(&file_config(&path), &state).unwrap_err().to_string().contains("0 bytes long"));
    fs::remove_file(&path).unwrap();
    assert!(RamBlock::reopen(&file_config(&path), &state).unwrap_err().to_string().contains("opening"));
    assert!(!path.exists(), "a reopening made the file");
}

#[test]
fn a_rom_holds_its_image_at_its_end_and_travels_in_the_state_only_over_a_reboot() {
    let rom = RamBlock::create_rom(ROM, &[0xf4; 100]).unwrap();
    assert!(rom.state(Mode::CprTransfer).unwrap().image.is_empty());
    let state = rom.state(Mode::CprReboot).unwrap();
    let again = RamBlock::reopen(&config(MIB, Backing::Memfd), &state).unwrap();
    assert_eq!((again.size(), state.image.len()), (4096, 4096));
    assert_eq!(again.state(Mode::CprReboot).unwrap().image, [vec![0; 3996], vec![0xf4; 100]].concat());
    assert!(RamBlock::create_rom(ROM, &[]).is_err());
    assert!(RamBlock::create_rom(ROM, &vec![0; (16 << 20) + 1]).is_err());
}

#[test]
fn only_ram_without_a_path_blocks_a_reboot() {
    let dir = shm();
    let file = RamBlock::create(RAM, &file_config(&dir.path().join("ram"))).unwrap();
    assert_eq!(file.survives(Mode::CprReboot, RamFate::Stays), None);
    let device = RamBlock {
        name: RAM.into(),
        file: File::options().read(true).write(true).open("/dev/null").unwrap().into(),
        kind: RamKind::Dax,
        size: 2 * MIB,
        page_size: 2 * MIB,
        seals: 0,
        path: Some("/dev/null".into()),
        place: Place::all(Some(2 * MIB)),
    };
    assert_eq!(device.outlives_kexec(), None);
    let blocker = file.outlives_kexec().unwrap().to_string();
    assert!(
        ["--copy-ram", "backing=dax", "backing=file"].iter().all(|way| blocker.contains(way)),
        "{blocker}"
    );
    let memfd = memfd_block(MIB);
    assert_eq!(
        (memfd.survives(Mode::CprTransfer, RamFate::Stays), memfd.survives(Mode::CprExec, RamFate::Stays)),
        (None, None)
    );
    let blocker = memfd.survives(Mode::CprReboot, RamFate::Stays).unwrap();
    assert!(blocker.to_string().contains("pc.ram") && blocker.reason.contains("/dev/shm"), "{blocker}");
}

#[test]
fn populating_allocates_no_holes_and_can_be_stopped() {
    let block = memfd_block(64 * MIB);
    block.file().write_all_at(&[1; 8192], 4 * MIB).unwrap();
    block.file().write_all_at(&[1; 4096], 40 * MIB).unwrap();
    let before = blocks_of(block.file());
    let ranges = [(GuestAddress(0), 0, 32 * MIB), (GuestAddress(4 << 30), 32 * MIB, 32 * MIB)];
    let guest = GuestRam::map(&block, &ranges).unwrap();
    assert_eq!(guest.populate(&AtomicBool::new(true)), 0);
    assert_eq!(guest.populate(&AtomicBool::new(false)), 12288);
    assert_eq!(blocks_of(block.file()), before);
}

#[test]
fn too_few_huge_pages_are_said_to_be_too_few() {
    // More than any host has: 8 TiB.
    let backing = Backing::Hugetlb { page_size: crate::config::HugePageSize::Size2M };
    let message = RamBlock::create(RAM, &config(1 << 43, backing)).unwrap_err().to_string();
    assert!(
        message.contains("needs 4194304 huge pages of 2M") && message.contains("nr_hugepages"),
        "{message}"
    );
}
