use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use super::*;

const SETTLE: Duration = Duration::from_secs(5);

fn config(path: &Path) -> BlockConfig {
    toml::from_str(&format!("path = {path:?}")).unwrap()
}

fn read_only(path: &Path) -> BlockConfig {
    BlockConfig { readonly: true, ..config(path) }
}

/// A directory with an image of 1 MiB in it.
fn image() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    (dir, path)
}

fn name() -> FdName {
    FdName::new("disk0.image", 0)
}

/// A loop device over an image; `None`, said aloud, where there is none to be had.
pub(crate) struct LoopDevice(pub(crate) PathBuf);

impl LoopDevice {
    pub(crate) fn over(image: &Path, options: &[&str]) -> Option<Self> {
        let output = Command::new("losetup").args(["--find", "--show"]).args(options).arg(image).output();
        match output {
            Ok(output) if output.status.success() => {
                Some(Self(String::from_utf8(output.stdout).unwrap().trim().into()))
            }
            other => {
                crate::testing::skip("lab", format!("no loop device: {other:?}"));
                None
            }
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn a_second_writer_is_refused_and_told_who_has_the_image() {
    let (_dir, path) = image();
    let first = Image::open(&config(&path)).unwrap();
    for second in [config(&path), read_only(&path)] {
        let message = Image::open(&second).unwrap_err().to_string();
        assert!(message.contains(&format!("in use by process {} (", std::process::id())), "{message}");
    }
    drop(first);
    Image::open(&config(&path)).unwrap();
}

#[test]
fn readers_share_an_image_and_keep_writers_out() {
    let (_dir, path) = image();
    let readers = [Image::open(&read_only(&path)).unwrap(), Image::open(&read_only(&path)).unwrap()];
    assert!(matches!(Image::open(&config(&path)), Err(ImageError::InUse { .. })));
    drop(readers);
    Image::open(&config(&path)).unwrap();
}

#[test]
fn another_program_s_lock_on_one_byte_is_respected_and_its_pid_named() {
    let (_dir, path) = image();
    let program = "import fcntl,sys,time\nf=open(sys.argv[1],'r+b')\nfcntl.lockf(f,fcntl.LOCK_EX,1,100)\n\
                   print('locked',flush=True)\nsys.stdin.read()";
    let mut command = Command::new("python3");
    let Some(child) = Piped::start(command.args(["-c", program]).arg(&path)) else { return };
    let message = Image::open(&config(&path)).unwrap_err().to_string();
    assert!(message.contains(&format!("process {} (python3", child.0.id())), "{message}");
}

/// A child that has said a line and lives until this is dropped.
struct Piped(Child);

impl Piped {
    fn start(command: &mut Command) -> Option<Self> {
        let mut child = match command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn() {
            Ok(child) => child,
            Err(e) => {
                eprintln!("skipped: {command:?}: {e}");
                return None;
            }
        };
        let mut line = String::new();
        let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut output, &mut line).unwrap();
        assert!(!line.is_empty(), "{command:?} said nothing");
        Some(Self(child))
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

#[test]
fn the_lock_goes_to_another_process_with_the_descriptor_and_is_never_free() {
    let (_dir, path) = image();
    let source = Image::open(&config(&path)).unwrap();
    // A child that inherits the descriptor over exec, as its standard error, and only holds it.
    let inherited = source.backing().file.try_clone().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "echo ready; read line"]).stderr(inherited);
    let target = Piped::start(&mut command).unwrap();
    drop(command);
    drop(source);
    let message = Image::open(&config(&path)).unwrap_err().to_string();
    assert!(message.contains(&format!("process {} (sh)", target.0.id())), "{message}");
    drop(target);
    Image::open(&config(&path)).unwrap();
}

#[test]
fn a_passed_descriptor_has_the_lock_after_the_sender_has_closed_its_own() {
    let (_dir, path) = image();
    let source = Image::open(&config(&path)).unwrap();
    let (here, there) = UnixStream::pair().unwrap();
    let sent = [source.backing().file.as_raw_fd()];
    let data = [std::io::IoSlice::new(b"x")];
    sendmsg::<()>(here.as_raw_fd(), &data, &[ControlMessage::ScmRights(&sent)], MsgFlags::empty(), None)
        .unwrap();
    drop(source);
    assert!(matches!(Image::open(&config(&path)), Err(ImageError::InUse { .. })), "free while in the socket");
    let target = Image::adopt(&name(), receive(&there), &config(&path)).unwrap();
    assert!(matches!(Image::open(&config(&path)), Err(ImageError::InUse { .. })));
    drop(target);
    Image::open(&config(&path)).unwrap();
}

fn receive(socket: &UnixStream) -> OwnedFd {
    let mut byte = [0];
    let mut data = [std::io::IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let message =
        recvmsg::<()>(socket.as_raw_fd(), &mut data, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).unwrap();
    let Some(ControlMessageOwned::ScmRights(fds)) = message.cmsgs().unwrap().next() else { panic!() };
    // SAFETY: the kernel has just made it for us.
    unsafe { std::os::fd::FromRawFd::from_raw_fd(fds[0]) }
}

#[test]
fn a_source_that_takes_its_guest_back_has_the_lock_still() {
    let (_dir, path) = image();
    let source = Image::open(&config(&path)).unwrap();
    let mut fds = FdTable::new();
    source.register(name(), &mut fds).unwrap();
    let target = Image::adopt(&name(), fds.take(&name()).unwrap(), &config(&path)).unwrap();
    drop(target);
    assert!(matches!(Image::open(&config(&path)), Err(ImageError::InUse { .. })));
    drop(source);
    Image::open(&config(&path)).unwrap();
}

#[test]
fn a_descriptor_that_is_not_what_the_configuration_says_is_refused() {
    let (_dir, path) = image();
    let adopt = |file: File, config: &BlockConfig| {
        Image::adopt(&name(), file.into(), config).map(drop).unwrap_err().to_string()
    };
    let writable = || OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let cases = [
        (File::open(&path).unwrap(), config(&path), "not open for reading and writing"),
        (writable(), read_only(&path), "open for writing"),
        (writable(), BlockConfig { direct: true, ..config(&path) }, "direct=on"),
        (File::open("/dev/null").unwrap(), read_only(&path), "something else"),
    ];
    for (file, config, expected) in cases {
        let message = adopt(file, &config);
        assert!(message.contains("'disk0.image' #0") && message.contains(expected), "{message}");
    }
    let other = Image::open(&config(&path)).unwrap();
    let message = adopt(writable(), &config(&path));
    assert!(message.contains("in use by process"), "{message}");
    drop(other);
}

#[test]
fn an_image_of_a_wrong_size_or_kind_is_refused() {
    let (dir, path) = image();
    File::options().write(true).open(&path).unwrap().set_len(1000).unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let cases = [
        (path.as_path(), "a size of 1000 bytes; expected a multiple of its block of 512"),
        (fifo.as_path(), "something else; expected a regular file or a block device"),
        (Path::new("/nowhere/disk.img"), "opening it: No such file"),
    ];
    for (path, expected) in cases {
        let message = Image::open(&config(path)).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn an_image_that_was_left_alone_is_the_same_after_closing_and_opening() {
    let (_dir, path) = image();
    let source = Image::open(&config(&path)).unwrap();
    (&*source.backing().file).write_all(b"the guest's last write").unwrap();
    let saved = source.settle(SETTLE).unwrap();
    drop(source);
    let saved: ImageIdentity = postcard::from_bytes(&postcard::to_stdvec(&saved).unwrap()).unwrap();
    Image::open(&config(&path)).unwrap().verify(&saved).unwrap();
}

#[test]
fn a_sync_that_is_late_is_an_error_that_names_the_image_and_ends_by_itself() {
    let (_dir, path) = image();
    let source = Image::open(&config(&path)).unwrap();
    let (end, ended) = mpsc::channel::<()>();
    let slow = move |_: &File| ended.recv().map_err(io::Error::other);
    let since = std::time::Instant::now();
    let message = source.settle_by(Duration::from_millis(20), slow).unwrap_err().to_string();
    assert!(since.elapsed() < SETTLE);
    let named = format!("image {}: syncing it: the host's disk has not done it within 20 ms", path.display());
    assert_eq!(message, named);
    // The guest goes on, and so does the sync; the next one does not wait for it.
    (&*source.backing().file).write_all(b"the guest's next write").unwrap();
    source.settle(SETTLE).unwrap();
    end.send(()).unwrap();
    drop(source);
    // Nor does it keep the image for ever.
    let deadline = std::time::Instant::now() + SETTLE;
    while Image::open(&config(&path)).is_err() {
        assert!(std::time::Instant::now() < deadline, "the image stays locked");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn an_image_whose_path_leads_elsewhere_or_nowhere_is_lost_until_it_is_back() {
    let (dir, path) = image();
    let source = Image::open(&config(&path)).unwrap();
    assert_eq!(source.lost(), None);
    let moved = dir.path().join("moved.img");
    fs::rename(&path, &moved).unwrap();
    assert!(source.lost().unwrap().contains("No such file"));
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let why = source.lost().unwrap();
    assert!(why.contains("another one is there") && why.contains(&path.display().to_string()), "{why}");
    fs::remove_file(&path).unwrap();
    fs::hard_link(&moved, &path).unwrap();
    assert_eq!(source.lost(), None);
}

#[test]
fn an_image_that_was_changed_resized_or_replaced_is_refused_by_what_differs() {
    let change = |change: &dyn Fn(&Path)| {
        let (_dir, path) = image();
        let saved = Image::open(&config(&path)).unwrap().settle(SETTLE).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        change(&path);
        Image::open(&config(&path)).unwrap().verify(&saved).unwrap_err().to_string()
    };
    let changed = change(&|path| File::options().write(true).open(path).unwrap().write_all(b"x").unwrap());
    assert!(changed.contains("modification time was") && !changed.contains("inode"), "{changed}");
    let grown = change(&|path| File::options().write(true).open(path).unwrap().set_len(2 << 20).unwrap());
    assert!(grown.contains("size was 1048576 bytes and is 2097152 bytes"), "{grown}");
    let replaced = change(&|path| {
        let other = path.with_extension("new");
        fs::copy(path, &other).unwrap();
        fs::rename(other, path).unwrap();
    });
    assert!(replaced.contains("inode was"), "{replaced}");
}

#[test]
fn two_images_whose_descriptors_were_mixed_up_are_told_apart_while_the_guest_writes() {
    let ((_a, first), (_b, second)) = (image(), image());
    let [first, second] = [first, second].map(|path| Image::open(&config(&path)).unwrap());
    let saved = first.identity().unwrap();
    (&*first.backing().file).write_all(b"the guest goes on").unwrap();
    first.recognize(&saved).unwrap();
    assert!(second.recognize(&saved).unwrap_err().to_string().contains("inode was"));
}

#[test]
fn direct_io_sets_the_logical_block_and_is_kept_by_the_descriptor() {
    let (_dir, path) = image();
    let direct = BlockConfig { direct: true, ..config(&path) };
    let image = match Image::open(&direct) {
        Ok(image) => image,
        Err(e) => {
            eprintln!("skipped: {e}");
            return;
        }
    };
    let align = image.backing().direct.unwrap();
    assert!(align.memory.is_power_of_two() && align.offset.is_power_of_two());
    assert!(image.block_size() >= align.offset && image.block_size() >= 512);
    let mut fds = FdTable::new();
    image.register(name(), &mut fds).unwrap();
    let adopted = Image::adopt(&name(), fds.take(&name()).unwrap(), &direct).unwrap();
    assert_eq!(adopted.backing().direct, image.backing().direct);
}

#[test]
fn a_block_device_has_its_own_size_block_and_hardware() {
    let (_dir, path) = image();
    let Some(device) = LoopDevice::over(&path, &["--sector-size", "4096"]) else { return };
    let image = Image::open(&config(&device.0)).unwrap();
    assert_eq!((image.sectors(), image.block_size(), image.can_discard()), (2048, 4096, true));
    assert!(matches!(
        Image::open(&config(&device.0)),
        Err(ImageError::Claimed { .. } | ImageError::InUse { .. })
    ));
    let identity = image.settle(SETTLE).unwrap();
    let backing = identity.hardware.as_ref().unwrap().name.clone().unwrap();
    assert_eq!(Path::new(&backing), path);
    drop(image);
    Image::open(&read_only(&device.0)).unwrap().verify(&identity).unwrap();
}

#[test]
fn a_block_device_that_was_attached_anew_is_refused() {
    let (_dir, path) = image();
    let Some(device) = LoopDevice::over(&path, &[]) else { return };
    let saved = Image::open(&config(&device.0)).unwrap().settle(SETTLE).unwrap();
    drop(device);
    let Some(device) = LoopDevice::over(&path, &[]) else { return };
    let message = Image::open(&config(&device.0)).unwrap().verify(&saved).unwrap_err().to_string();
    assert!(message.contains("disk sequence number was"), "{message}");
}

#[test]
fn a_read_only_block_device_is_not_opened_for_writing() {
    let (_dir, path) = image();
    let Some(device) = LoopDevice::over(&path, &["--read-only"]) else { return };
    let message = Image::open(&config(&device.0)).unwrap_err().to_string();
    assert!(message.contains("read-only") || message.contains("Permission denied"), "{message}");
    assert!(!Image::open(&read_only(&device.0)).unwrap().can_discard());
}
