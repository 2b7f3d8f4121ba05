//! The port on its real back ends: sockets, pseudo-terminals and files, in an event loop, over handovers.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use event_manager::{EventManager, SubscriberOps};
use vm_device::DevicePio;
use vm_device::bus::PioAddress;

use super::{COM1, Serial, SerialSubscriber};
use crate::config::{ChardevConfig, Uuid};
use crate::cpr::Mode;
use crate::cpr::fds::{FdName, FdTable};
use crate::cpr::format::{HeaderInfo, StateReader, StateWriter};
use crate::devices::chardev::{Chardev, QUEUE};
use crate::devices::{Device, IrqLine};

const DATA: u16 = 0;
const IER: u16 = 1;
const IIR: u16 = 2;
const MCR: u16 = 4;
const LSR: u16 = 5;
const DATA_READY: u8 = 0x01;
const THR_EMPTY: u8 = 0x20;

/// Counts rising edges.
#[derive(Default)]
struct Line(AtomicUsize);

impl IrqLine for Line {
    fn set(&self, high: bool) {
        self.0.fetch_add(usize::from(high), Ordering::Relaxed);
    }
}

/// A process's worth of serial port: the port, its line and the event loop.
struct Port {
    serial: Arc<Serial>,
    line: Arc<Line>,
    received: Arc<AtomicUsize>,
    events: EventManager<SerialSubscriber>,
}

impl Port {
    fn on(chardev: Chardev) -> Self {
        let line = Arc::new(Line::default());
        let received = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&received);
        let received_one = Arc::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let serial = Serial::new("serial0", line.clone(), received_one, chardev);
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(serial.subscriber());
        Self { serial, line, received, events }
    }

    fn boot(config: &ChardevConfig) -> Self {
        Self::on(Chardev::open("serial0", config).unwrap())
    }

    /// Runs the event loop until nothing happens; the number of turns it took.
    fn turn(&mut self) -> usize {
        (0..10_000)
            .find(|_| self.events.run_with_timeout(0).unwrap() == 0)
            .expect("the event loop never rests")
    }

    fn out(&self, register: u16, value: u8) {
        self.serial.pio_write(PioAddress(COM1), register, &[value]);
    }

    fn inb(&self, register: u16) -> u8 {
        let mut value = [0];
        self.serial.pio_read(PioAddress(COM1), register, &mut value);
        value[0]
    }

    fn print(&self, bytes: &[u8]) {
        self.serial.pio_write(PioAddress(COM1), DATA, bytes);
    }

    /// What a guest gets that reads while there is data.
    fn read_all(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.turn();
        while self.inb(LSR) & DATA_READY != 0 {
            bytes.push(self.inb(DATA));
            self.turn();
        }
        bytes
    }

    fn interrupts(&self) -> usize {
        self.line.0.load(Ordering::Relaxed)
    }

    fn fds(&self) -> FdTable {
        let mut fds = FdTable::new();
        self.serial.descriptors(Mode::CprTransfer, &mut fds).unwrap();
        fds
    }

    fn save(&self) -> Vec<u8> {
        let header = HeaderInfo { created: 0, ..HeaderInfo::new(Mode::CprTransfer, "test", uuid()) };
        let mut out = StateWriter::new(header);
        self.serial.save(&mut out).unwrap();
        out.finish().unwrap()
    }

    fn load(&self, bytes: &[u8]) {
        let mut state = StateReader::parse(bytes).unwrap();
        self.serial.load(&mut state).unwrap();
        state.finish().unwrap();
    }

    /// A whole handover by descriptors: this port is let go of, the other runs.
    fn hand_over(mut self, config: &ChardevConfig) -> Self {
        let mut fds = self.fds();
        let mut target = Self::on(Chardev::adopt("serial0", config, &mut fds).unwrap());
        fds.finish().unwrap();
        target.turn();
        self.serial.quiesce(Instant::now()).unwrap();
        self.turn();
        target.load(&self.save());
        self.serial.hand_over();
        drop(self);
        target.serial.resume();
        target.turn();
        target
    }
}

fn uuid() -> Uuid {
    "00000000-0000-4000-8000-000000000001".parse().unwrap()
}

fn socket() -> (tempfile::TempDir, ChardevConfig, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("serial");
    (dir, ChardevConfig::Unix(path.clone()), path)
}

/// What has arrived by now.
fn arrived(mut stream: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut buf = [0; 4096];
    loop {
        match stream.read(&mut buf) {
            Ok(0) => return bytes,
            Ok(n) => bytes.extend_from_slice(&buf[..n]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return bytes,
            Err(e) => panic!("{e}"),
        }
    }
}

fn client(path: &PathBuf) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_nonblocking(true).unwrap();
    stream
}

/// Tries until it is done, for at most ten seconds.
fn until(mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(10), "it never came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Bytes in which a lost or repeated one shows.
fn counting(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

/// Prints until the port says that it is busy; how much that was.
fn fill(port: &Port, from: usize) -> usize {
    let bytes = counting(from + 4 * 1024 * 1024);
    let mut sent = from;
    while port.inb(LSR) & THR_EMPTY != 0 {
        port.out(DATA, bytes[sent]);
        sent += 1;
    }
    sent
}

#[test]
fn input_is_signalled_whether_it_interrupts_or_not_and_what_is_pending_interrupts_again_on_demand() {
    let (_dir, config, path) = socket();
    let mut port = Port::boot(&config);
    let mut client = UnixStream::connect(&path).unwrap();
    port.turn();
    let counts = |port: &Port| (port.received.load(Ordering::Relaxed), port.interrupts());
    assert_eq!(counts(&port), (0, 0));
    client.write_all(b"a").unwrap();
    port.turn();
    port.serial.interrupt_again();
    assert_eq!(counts(&port), (1, 0));
    assert_eq!(port.read_all(), b"a");
    port.out(IER, 1);
    client.write_all(b"b").unwrap();
    port.turn();
    assert_eq!(counts(&port), (2, 1));
    port.serial.interrupt_again();
    assert_eq!(counts(&port), (2, 2));
    assert_eq!(port.read_all(), b"b");
    port.serial.interrupt_again();
    assert_eq!(counts(&port), (2, 2), "nothing is pending");
}

#[test]
fn a_client_keeps_its_connection_and_gets_every_byte_once_and_in_order() {
    let (_dir, config, path) = socket();
    let mut port = Port::boot(&config);
    let mut reader = client(&path);
    port.turn();
    let mut seen = Vec::new();
    let mut sent = 0;
    for _ in 0..5 {
        // The reader is so slow that the socket and the queue are full at each handover.
        sent = fill(&port, sent);
        let mut some = vec![0; 40_000];
        let n = reader.read(&mut some).unwrap();
        seen.extend_from_slice(&some[..n]);
        port = port.hand_over(&config);
    }
    until(|| {
        seen.extend(arrived(&reader));
        port.turn();
        seen.len() >= sent
    });
    assert!(sent > 5 * 40_000);
    assert_eq!(seen, counting(sent));
    reader.write_all(b"still here").unwrap();
    assert_eq!(port.read_all(), b"still here");
}

#[test]
fn input_that_waits_in_fifo_and_socket_survives_a_handover() {
    let (_dir, config, path) = socket();
    let mut port = Port::boot(&config);
    let mut writer = client(&path);
    writer.write_all(&counting(1000)).unwrap();
    port.turn();
    let first: Vec<u8> = (0..10).map(|_| port.inb(DATA)).collect();
    let mut port = port.hand_over(&config);
    assert_eq!([first, port.read_all()].concat(), counting(1000));
}

#[test]
fn more_input_than_the_fifo_holds_is_not_lost_even_when_the_client_leaves() {
    let (_dir, config, path) = socket();
    let mut port = Port::boot(&config);
    client(&path).write_all(&counting(5000)).unwrap();
    assert_eq!(port.read_all(), counting(5000));
    let mut next = client(&path);
    next.write_all(b"next").unwrap();
    assert_eq!(port.read_all(), b"next");
}

#[test]
fn a_client_that_left_makes_way_though_the_guest_does_not_read() {
    let (_dir, config, path) = socket();
    let mut port = Port::boot(&config);
    client(&path).write_all(&counting(5000)).unwrap();
    port.turn();
    let next = client(&path);
    port.turn();
    port.print(b"hello");
    assert_eq!(arrived(&next), b"hello");
}

#[test]
fn one_client_at_a_time_and_the_next_when_it_leaves() {
    let (_dir, config, path) = socket();
    let mut port = Port::boot(&config);
    port.print(b"nobody hears this");
    let (first, second) = (client(&path), client(&path));
    port.turn();
    port.print(b"one");
    assert_eq!((arrived(&first), arrived(&second)), (b"one".to_vec(), Vec::new()));
    drop(first);
    port.turn();
    port.print(b"two");
    assert_eq!(arrived(&second), b"two");
}

#[test]
fn a_client_that_comes_or_goes_between_the_naming_and_the_stop_is_no_trouble() {
    let (_dir, config, path) = socket();
    let mut source = Port::boot(&config);
    let first = client(&path);
    source.turn();
    let mut fds = source.fds();
    let mut target = Port::on(Chardev::adopt("serial0", &config, &mut fds).unwrap());
    drop(first);
    let second = client(&path);
    source.turn();
    target.turn();
    source.serial.quiesce(Instant::now()).unwrap();
    target.load(&source.save());
    source.serial.hand_over();
    drop(source);
    target.serial.resume();
    target.turn();
    target.print(b"hello");
    assert_eq!(arrived(&second), b"hello");
}

#[test]
fn a_handover_that_fails_leaves_source_socket_and_client_alone() {
    let (_dir, config, path) = socket();
    let mut source = Port::boot(&config);
    let mut first = client(&path);
    source.turn();
    let mut fds = source.fds();
    let mut target = Port::on(Chardev::adopt("serial0", &config, &mut fds).unwrap());
    source.serial.quiesce(Instant::now()).unwrap();
    target.load(&source.save());
    first.write_all(b"meanwhile").unwrap();
    target.turn();
    drop(target);
    source.serial.resume();
    assert_eq!(source.read_all(), b"meanwhile");
    drop(first);
    let second = client(&path);
    source.turn();
    source.print(b"on");
    assert_eq!(arrived(&second), b"on");
}

#[test]
fn while_it_stands_still_nothing_moves_and_the_event_loop_rests() {
    let (_dir, config, path) = socket();
    let mut port = Port::boot(&config);
    let mut peer = client(&path);
    port.turn();
    port.serial.quiesce(Instant::now()).unwrap();
    port.turn();
    peer.write_all(b"early").unwrap();
    let _waiting = client(&path);
    assert!(port.turn() <= 2, "one wake for the input and the client at most");
    assert_eq!(port.turn(), 0);
    port.print(b"late");
    assert_eq!((port.inb(LSR) & DATA_READY, arrived(&peer)), (0, Vec::new()));
    port.serial.resume();
    assert_eq!(port.read_all(), b"early");
    assert_eq!(arrived(&peer), b"late");
}

#[test]
fn a_slow_reader_holds_the_guest_back_and_an_interrupt_lets_it_go_on() {
    let (_dir, config, path) = socket();
    let mut port = Port::boot(&config);
    let reader = client(&path);
    port.turn();
    port.out(IER, 0x02);
    let sent = fill(&port, 0);
    assert!(sent > QUEUE);
    port.inb(IIR);
    let before = port.interrupts();
    port.turn();
    assert_eq!(port.interrupts(), before, "nothing has been read");
    let mut seen = arrived(&reader);
    port.turn();
    assert_eq!((port.interrupts(), port.inb(LSR) & THR_EMPTY), (before + 1, THR_EMPTY));
    until(|| {
        seen.extend(arrived(&reader));
        port.turn();
        seen.len() >= sent
    });
    assert_eq!(seen, counting(sent));
}

#[test]
fn a_guest_that_does_not_look_cannot_make_the_queue_grow() {
    let (_dir, config, path) = socket();
    let mut port = Port::boot(&config);
    let _reader = client(&path);
    port.turn();
    fill(&port, 0);
    port.print(&counting(1 << 20));
    assert!(port.save().len() < QUEUE + 8192);
}

#[test]
fn output_waits_for_the_first_client_after_a_reboot() {
    let (_dir, config, path) = socket();
    let mut source = Port::boot(&config);
    let gone = client(&path);
    source.turn();
    let sent = fill(&source, 0);
    let mut fds = FdTable::new();
    source.serial.descriptors(Mode::CprReboot, &mut fds).unwrap();
    assert!(fds.is_empty());
    source.serial.quiesce(Instant::now()).unwrap();
    let state = source.save();
    drop(source);
    let mut seen = arrived(&gone);
    let mut target = Port::on(Chardev::reopen("serial0", &config).unwrap());
    target.load(&state);
    assert!(target.save() == state, "loaded and saved again it is other bytes");
    target.serial.resume();
    target.turn();
    assert_eq!(target.inb(LSR) & THR_EMPTY, THR_EMPTY, "nobody holds the guest back");
    let next = client(&path);
    until(|| {
        target.turn();
        seen.extend(arrived(&next));
        seen.len() >= sent
    });
    assert_eq!(seen, counting(sent));
}

#[test]
fn the_socket_is_private_and_goes_with_its_guest() {
    let (_dir, config, path) = socket();
    let port = Port::boot(&config);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let port = port.hand_over(&config);
    assert!(path.exists(), "a handover removed the socket");
    drop(port);
    assert!(!path.exists());
}

#[test]
fn a_dead_process_s_socket_is_replaced_and_a_live_one_s_refused() {
    let (_dir, config, path) = socket();
    let listener = UnixListener::bind(&path).unwrap();
    let refused = Chardev::open("serial0", &config).unwrap_err().to_string();
    assert!(refused.contains("another process is listening"), "{refused}");
    drop(listener);
    assert!(path.exists());
    let mut port = Port::boot(&config);
    let peer = client(&path);
    port.turn();
    port.print(b"hello");
    assert_eq!(arrived(&peer), b"hello");
}

#[test]
fn a_file_in_the_socket_s_place_is_left_alone() {
    let (_dir, config, path) = socket();
    fs::write(&path, "precious").unwrap();
    let refused = Chardev::open("serial0", &config).unwrap_err().to_string();
    assert!(refused.contains("no socket"), "{refused}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn an_adopted_descriptor_must_be_what_its_name_says() {
    let (_dir, config, path) = socket();
    let refused = |config: &ChardevConfig, fds: Vec<(&str, OwnedFd)>| {
        let mut table = FdTable::new();
        for (name, fd) in fds {
            table.insert(FdName::new(format!("serial0.{name}"), 0), fd).unwrap();
        }
        Chardev::adopt("serial0", config, &mut table).unwrap_err().to_string()
    };
    let listener = || -> OwnedFd {
        let _ = fs::remove_file(&path);
        UnixListener::bind(&path).unwrap().into()
    };
    let stream = || -> OwnedFd { UnixStream::pair().unwrap().0.into() };
    let null = || -> OwnedFd { File::open("/dev/null").unwrap().into() };
    assert!(refused(&config, vec![]).contains("'serial0.listen' #0 is missing"));
    assert!(refused(&config, vec![("listen", stream())]).contains("not listening"));
    assert!(refused(&config, vec![("listen", null())]).contains("no UNIX stream socket"));
    assert!(
        refused(&config, vec![("listen", listener()), ("client", listener())]).contains("a listening socket")
    );
    assert!(refused(&ChardevConfig::Pty, vec![("pty", null())]).contains("pseudo-terminal"));
    assert!(refused(&ChardevConfig::File(path.clone()), vec![("file", null())]).contains("open for writing"));
    assert!(refused(&ChardevConfig::Stdio, vec![("in", null()), ("out", null())]).contains("'serial0.out'"));
}

#[test]
fn a_state_with_a_client_needs_the_client() {
    let (_dir, config, path) = socket();
    let mut source = Port::boot(&config);
    let _peer = client(&path);
    source.turn();
    let state = source.save();
    let mut fds = source.fds();
    fds.take(&FdName::new("serial0.client", 0)).unwrap();
    let target = Port::on(Chardev::adopt("serial0", &config, &mut fds).unwrap());
    let error = target.serial.load(&mut StateReader::parse(&state).unwrap()).unwrap_err();
    assert!(error.to_string().contains("'serial0.client' #0 is missing"), "{error}");
}

#[test]
fn saved_loaded_and_saved_again_it_is_the_same_bytes_and_raises_no_interrupt() {
    let (_dir, config, path) = socket();
    let mut source = Port::boot(&config);
    source.out(3, 0x83);
    source.out(DATA, 0x01);
    source.out(3, 0x03);
    source.out(7, 0x5a);
    source.out(IER, 0x03);
    client(&path).write_all(&counting(200)).unwrap();
    source.turn();
    assert!(source.interrupts() > 0);
    source.serial.quiesce(Instant::now()).unwrap();
    let state = source.save();
    let mut fds = source.fds();
    let target = Port::on(Chardev::adopt("serial0", &config, &mut fds).unwrap());
    target.load(&state);
    assert_eq!((target.save() == state, target.interrupts()), (true, 0));
    assert_eq!((target.inb(7), target.inb(IER), target.inb(LSR) & DATA_READY), (0x5a, 0x03, 1));
}

#[test]
fn looped_back_input_from_outside_waits() {
    let (_dir, config, path) = socket();
    let mut port = Port::boot(&config);
    let mut peer = client(&path);
    port.turn();
    port.out(MCR, 0x10);
    peer.write_all(b"outside").unwrap();
    port.turn();
    port.print(b"in");
    assert_eq!((port.inb(DATA), port.inb(DATA), port.inb(LSR) & DATA_READY), (b'i', b'n', 0));
    port.out(MCR, 0x08);
    assert_eq!(port.read_all(), b"outside");
    assert!(arrived(&peer).is_empty());
}

#[test]
fn a_terminal_that_is_opened_and_closed_gets_what_is_sent_while_it_is_open() {
    let mut port = Port::boot(&ChardevConfig::Pty);
    let path = port.serial.pty_path().unwrap();
    port.print(&counting(QUEUE * 3));
    assert_eq!(port.inb(LSR) & THR_EMPTY, THR_EMPTY, "a terminal that nobody has open holds the guest back");
    for _ in 0..2 {
        let mut terminal = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(&path)
            .unwrap();
        port.print(b"login: ");
        let mut seen = Vec::new();
        until(|| {
            seen.extend(arrived(&terminal));
            seen.len() >= 7
        });
        assert_eq!(seen, b"login: ");
        terminal.write_all(b"root\r").unwrap();
        let mut typed = Vec::new();
        until(|| {
            typed.extend(port.read_all());
            typed.len() >= 5
        });
        assert_eq!(typed, b"root\r");
        port = port.hand_over(&ChardevConfig::Pty);
        assert_eq!(port.serial.pty_path().unwrap(), path);
    }
}

#[test]
fn a_file_is_appended_to_over_a_handover() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    fs::write(&path, "before ").unwrap();
    let config = ChardevConfig::File(path.clone());
    let port = Port::boot(&config);
    port.print(b"source ");
    let port = port.hand_over(&config);
    port.print(b"target");
    assert_eq!(fs::read_to_string(&path).unwrap(), "before source target");
}

#[test]
fn standard_streams_that_would_wait_do_not_hold_a_vcpu() {
    let (input_read, mut input) = std::io::pipe().unwrap();
    let (output, output_write) = std::io::pipe().unwrap();
    let mut fds = FdTable::new();
    fds.insert(FdName::new("serial0.in", 0), input_read.into()).unwrap();
    fds.insert(FdName::new("serial0.out", 0), output_write.into()).unwrap();
    let mut port = Port::on(Chardev::adopt("serial0", &ChardevConfig::Stdio, &mut fds).unwrap());
    port.serial.resume();
    input.write_all(b"typed").unwrap();
    assert_eq!(port.read_all(), b"typed");
    let sent = fill(&port, 0);
    let port = port.hand_over(&ChardevConfig::Stdio);
    let reader = std::thread::spawn(move || {
        let mut seen = Vec::new();
        let mut output = output;
        output.read_to_end(&mut seen).unwrap();
        seen
    });
    let mut port = port;
    until(|| {
        port.turn();
        port.save().len() < 1000
    });
    drop(port);
    assert_eq!(reader.join().unwrap(), counting(sent));
}

#[test]
fn the_terminal_is_set_back_by_whoever_has_the_guest_last() {
    use nix::sys::termios::{LocalFlags, SetArg, cfmakeraw, tcgetattr, tcsetattr};
    let terminal = nix::pty::openpty(None, None).unwrap();
    let echoes = || tcgetattr(&terminal.slave).unwrap().local_flags.contains(LocalFlags::ECHO);
    let fds = || {
        let mut fds = FdTable::new();
        for name in ["in", "out"] {
            fds.insert(FdName::new(format!("serial0.{name}"), 0), terminal.slave.try_clone().unwrap())
                .unwrap();
        }
        fds
    };
    let before = crate::devices::chardev::TerminalState::of(&tcgetattr(&terminal.slave).unwrap());
    let mut raw = tcgetattr(&terminal.slave).unwrap();
    cfmakeraw(&mut raw);
    tcsetattr(&terminal.slave, SetArg::TCSANOW, &raw).unwrap();
    let adopt = || Chardev::adopt("serial0", &ChardevConfig::Stdio, &mut fds()).unwrap();
    let state = crate::devices::chardev::ChardevState { terminal: Some(before), ..Default::default() };
    let mut never_ran = adopt();
    never_ran.load(state.clone()).unwrap();
    drop(never_ran);
    assert!(!echoes(), "a target that never ran set the terminal back");
    let mut source = adopt();
    source.load(state).unwrap();
    source.resume();
    let mut target = adopt();
    target.load(source.state()).unwrap();
    source.hand_over();
    drop(source);
    assert!(!echoes(), "the source set the terminal back");
    target.resume();
    drop(target);
    assert!(echoes());
}
