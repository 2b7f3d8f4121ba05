use std::io::Read;
use std::net::UdpSocket;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;

/// Runs a test in a network namespace of its own; says so where there is none to be had.
pub(in super::super) fn in_a_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        let made = unshare(CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
        let tap = made.and_then(|()| File::open(TUN));
        match tap.and_then(|_| Command::new("ip").arg("-V").output()) {
            Ok(_) => test(),
            Err(e) => crate::testing::skip("lab", format!("no network namespace with taps: {e}")),
        }
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip`.
pub(in super::super) fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// A tap that is up, whose host is 192.0.2.1 and whose guest 192.0.2.2 with the address [`GUEST`].
pub(in super::super) fn network(options: &str) {
    ip(&format!("tuntap add dev t0 mode tap{options}"));
    ip("addr add 192.0.2.1/24 dev t0");
    ip("link set t0 up");
    ip(&format!("neigh add 192.0.2.2 dev t0 lladdr {GUEST}"));
}

/// Opens [`network`]'s tap.
fn open(queues: u16) -> Tap {
    let tap = Tap::open("t0", queues).unwrap();
    up();
    tap
}

/// Does what needs a tap that nobody has. Another test may just be starting a program, which has all descriptors for a
/// moment.
pub(in super::super) fn once_free<T, E: std::fmt::Display>(mut doing: impl FnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match doing() {
            Ok(done) => return done,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}

/// Waits until the host's kernel lets packets into the tap.
pub(in super::super) fn up() {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let shown = Command::new("ip").args(["link", "show", "t0"]).output().unwrap().stdout;
        if String::from_utf8(shown).unwrap().contains("state UP") {
            return;
        }
        assert!(Instant::now() < deadline, "t0 does not come up");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(in super::super) const GUEST: Mac = Mac([0x52, 0x54, 0, 1, 2, 3]);

fn memory() -> Arc<GuestMemoryMmap> {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap())
}

fn buffers(memory: &Arc<GuestMemoryMmap>, pieces: &[(u64, u32)]) -> GuestBuffers {
    let mut buffers = GuestBuffers::new(memory.clone());
    for (addr, len) in pieces {
        buffers.push(GuestAddress(*addr), *len).unwrap();
    }
    buffers
}

/// The next packet of any of a tap's queues whose frame is wanted: its header and its frame.
fn packet(tap: &Tap, wanted: impl Fn(&[u8]) -> bool) -> (Vec<u8>, Vec<u8>) {
    let memory = memory();
    // The header ends in the middle of a buffer, the frame goes over two.
    let into = buffers(&memory, &[(0, 5), (0x1000, 20), (0x2000, 70_000)]);
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        for queue in tap.queues() {
            while let Some(n) = queue.receive(&into).unwrap() {
                let mut bytes = vec![0; n];
                into.copy_out(&mut bytes);
                if wanted(&bytes[HEADER..]) {
                    return (bytes[..HEADER].to_vec(), bytes[HEADER..].to_vec());
                }
            }
        }
        assert!(Instant::now() < deadline, "no such packet came");
        let mut fds: Vec<_> =
            tap.queues().iter().map(|queue| PollFd::new(queue.as_fd(), PollFlags::POLLIN)).collect();
        poll(&mut fds, PollTimeout::from(100_u8)).unwrap();
    }
}

pub(in super::super) fn is_udp(frame: &[u8]) -> bool {
    frame.len() > 34 && frame[12..14] == [8, 0] && frame[23] == 17
}

#[test]
fn packets_go_both_ways_between_the_host_and_guest_buffers() {
    in_a_namespace(|| {
        network("");
        let tap = open(1);
        assert_eq!(tap.name(), "t0");
        let memory = memory();
        let mut request = vec![0; HEADER];
        request.extend([0xff; 6]);
        request.extend(GUEST.0);
        request.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        request.extend(GUEST.0);
        request.extend([192, 0, 2, 2, 0, 0, 0, 0, 0, 0, 192, 0, 2, 1]);
        memory.write_slice(&request, GuestAddress(3)).unwrap();
        let len = request.len() as u32;
        let from = buffers(&memory, &[(3, 7), (10, 10), (20, len - 17)]);
        assert_eq!(tap.queues()[0].send(&from).unwrap(), Some(request.len()));
        let (header, reply) = packet(&tap, |frame| frame[12..14] == [8, 6]);
        assert_eq!(
            (&reply[..6], &reply[20..22]),
            (&GUEST.0[..], &[0, 2][..]),
            "no answer to who has 192.0.2.1"
        );
        assert_eq!(header.len(), HEADER);
    });
}

#[test]
fn what_the_guest_offers_to_do_is_left_to_it_and_nothing_else() {
    in_a_namespace(|| {
        network("");
        let tap = open(1);
        let host = UdpSocket::bind("192.0.2.1:0").unwrap();
        let all = (1 << VIRTIO_NET_F_GUEST_CSUM)
            | (1 << VIRTIO_NET_F_GUEST_TSO4)
            | (1 << VIRTIO_NET_F_GUEST_TSO6)
            | (1 << VIRTIO_NET_F_GUEST_ECN)
            | (1 << VIRTIO_NET_F_GUEST_UFO);
        let uso = (1 << VIRTIO_NET_F_GUEST_USO4) | (1 << VIRTIO_NET_F_GUEST_USO6);
        for (features, needs_csum) in [(0, 0), (1 << VIRTIO_NET_F_GUEST_CSUM, 1), (all, 1), (0, 0)] {
            tap.set_offloads(offloads(features)).unwrap();
            host.send_to(b"hello", "192.0.2.2:9").unwrap();
            let (header, _) = packet(&tap, is_udp);
            assert_eq!(header[0] & 1, needs_csum, "features {features:#x}");
        }
        assert_eq!(tap.probe_uso().unwrap(), tap.set_offloads(offloads(all | uso)).is_ok());
    });
}

#[test]
fn an_offload_without_what_it_builds_on_is_left_out() {
    let bit = |bit: u32| 1_u64 << bit;
    let csum = bit(VIRTIO_NET_F_GUEST_CSUM);
    let cases = [
        (bit(VIRTIO_NET_F_GUEST_TSO4), 0),
        (csum | bit(VIRTIO_NET_F_GUEST_ECN), TUN_F_CSUM),
        (csum | bit(VIRTIO_NET_F_GUEST_USO4), TUN_F_CSUM),
        (
            csum | bit(VIRTIO_NET_F_GUEST_TSO6) | bit(VIRTIO_NET_F_GUEST_ECN),
            TUN_F_CSUM | TUN_F_TSO6 | TUN_F_TSO_ECN,
        ),
        (
            csum | bit(VIRTIO_NET_F_GUEST_USO4) | bit(VIRTIO_NET_F_GUEST_USO6),
            TUN_F_CSUM | TUN_F_USO4 | TUN_F_USO6,
        ),
    ];
    for (features, expected) in cases {
        assert_eq!(offloads(features), expected, "{features:#x}");
    }
}

#[test]
fn queues_are_let_go_and_taken_again_as_often_as_asked() {
    in_a_namespace(|| {
        network(" multi_queue");
        let tap = open(4);
        let enabled = || {
            let on = |queue: &&TapQueue| {
                i32::from(interface(queue.as_fd()).unwrap().flags) & IFF_DETACH_QUEUE == 0
            };
            tap.queues().iter().filter(on).count()
        };
        assert_eq!(enabled(), 4);
        for count in [1, 1, 3, 4, 2, 4] {
            tap.enable_queues(count).unwrap();
            assert_eq!(enabled(), usize::from(count));
        }
        // A queue that was let go gets no packets: all of them come by the first.
        tap.enable_queues(1).unwrap();
        let host = UdpSocket::bind("192.0.2.1:0").unwrap();
        for port in 1000..1032 {
            host.send_to(b"hello", ("192.0.2.2", port)).unwrap();
        }
        let first = Tap {
            name: "t0".into(),
            double: false,
            queues: vec![TapQueue { file: tap.queues[0].file.try_clone().unwrap() }],
        };
        for port in 1000..1032_u16 {
            packet(&first, |frame| is_udp(frame) && frame[36..38] == port.to_be_bytes());
        }
    });
}

#[test]
fn a_tap_goes_to_another_owner_as_it_is_and_loses_no_packet() {
    in_a_namespace(|| {
        network(" multi_queue");
        let source = open(2);
        source.set_offloads(TUN_F_CSUM).unwrap();
        let host = UdpSocket::bind("192.0.2.1:0").unwrap();
        host.send_to(b"in between", "192.0.2.2:9").unwrap();
        let mut fds = FdTable::new();
        source.register("net0", &mut fds).unwrap();
        let target = Tap::adopt("net0", 2, &mut fds).unwrap();
        drop(source);
        fds.finish().unwrap();
        let (header, frame) = packet(&target, is_udp);
        assert_eq!(header[0] & 1, 1, "the offloads were lost");
        assert!(frame.ends_with(b"in between"));
    });
}

#[test]
fn a_given_descriptor_is_checked_and_taken() {
    in_a_namespace(|| {
        network("");
        ip("tuntap add dev t1 mode tun");
        let raw = |name: &str, flags: i32| {
            let file = OpenOptions::new().read(true).write(true).open(TUN).unwrap();
            let mut request = Request::new(name, flags);
            // SAFETY: TUNSETIFF reads a struct ifreq and writes it back.
            once_free(|| check(unsafe { ioctl_with_mut_ref(&file, libc::TUNSETIFF, &mut request) }));
            file
        };
        let refused = |file: File| {
            let given = file.into_raw_fd();
            let error = Tap::from_given(&[given]).unwrap_err().to_string();
            // SAFETY: what was refused is left open, and is nobody else's.
            drop(unsafe { File::from_raw_fd(given) });
            error
        };
        assert!(refused(File::open("/dev/null").unwrap()).contains("no open tap"));
        assert!(refused(File::open(TUN).unwrap()).contains("no open tap"));
        assert!(refused(raw("t1", libc::IFF_TUN | IFF_NO_PI | IFF_VNET_HDR)).contains("tap t1: found a tun"));
        assert!(refused(raw("t0", IFF_TAP | IFF_NO_PI)).contains("one without the header"));
        let given = raw("t0", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR).into_raw_fd();
        let tap = Tap::from_given(&[given]).unwrap();
        assert_eq!(tap.name(), "t0");
        up();
        UdpSocket::bind("192.0.2.1:0").unwrap().send_to(b"hello", "192.0.2.2:9").unwrap();
        packet(&tap, is_udp);
    });
}

#[test]
fn descriptors_that_are_not_one_tap_s_queues_are_refused() {
    in_a_namespace(|| {
        for name in ["t0", "t1"] {
            ip(&format!("tuntap add dev {name} mode tap multi_queue"));
        }
        let mut fds = FdTable::new();
        let taps = [Tap::open("t0", 1).unwrap(), Tap::open("t1", 1).unwrap()];
        for (i, tap) in taps.iter().enumerate() {
            fds.insert_dup(FdName::new("net0.tap", i as u32), tap.queues[0].as_fd()).unwrap();
        }
        let message = Tap::adopt("net0", 2, &mut fds).unwrap_err().to_string();
        assert!(message.contains("'net0.tap' #0") && message.contains("queues of it and of t0"), "{message}");
        let message = Tap::adopt("net0", 2, &mut fds).unwrap_err().to_string();
        assert!(message.contains("'net0.tap' #0 is missing"), "{message}");
    });
}

#[test]
fn a_tap_that_is_missing_in_use_or_for_one_queue_only_is_refused() {
    in_a_namespace(|| {
        let refused = |name, queues| Tap::open(name, queues).unwrap_err().to_string();
        assert!(refused("t0", 1).contains("no such interface"));
        ip("tuntap add dev t0 mode tap");
        assert!(refused("t0", 2).contains("multi_queue"));
        assert!(refused("lo", 1).contains("lo"));
        let tap = Tap::open("t0", 1).unwrap();
        assert!(refused("t0", 1).contains("another process has it"));
        drop(tap);
        Tap::open("t0", 1).unwrap();
    });
}

#[test]
fn a_tap_that_is_deleted_or_down_fails_without_waiting() {
    in_a_namespace(|| {
        network("");
        let tap = open(1);
        let memory = memory();
        let packet = buffers(&memory, &[(0, 100)]);
        ip("link set t0 down");
        assert_eq!(tap.queues()[0].send(&packet).unwrap_err().raw_os_error(), Some(libc::EIO));
        ip("link del t0");
        let gone = [tap.queues()[0].send(&packet), tap.queues()[0].receive(&packet)];
        for result in gone {
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EBADFD));
        }
    });
}

#[test]
fn a_packet_whose_header_makes_no_sense_is_refused_and_the_next_goes_out() {
    in_a_namespace(|| {
        network("");
        let tap = open(1);
        let memory = memory();
        // A checksum is to be put far behind the packet's end.
        memory.write_slice(&[1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f], GuestAddress(0)).unwrap();
        assert!(tap.queues()[0].send(&buffers(&memory, &[(0, 100)])).is_err());
        assert!(tap.queues()[0].send(&buffers(&memory, &[(0, 4)])).is_err());
        assert_eq!(tap.queues()[0].send(&buffers(&memory, &[(0x1000, 100)])).unwrap(), Some(100));
    });
}

#[test]
fn an_announcement_reaches_the_host_s_network() {
    in_a_namespace(|| {
        network("");
        let tap = open(1);
        let kind = i32::from(0x8035_u16.to_be());
        // SAFETY: it makes a descriptor or fails.
        let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, kind) };
        assert!(socket >= 0);
        // SAFETY: the kernel has just made it.
        let mut socket = unsafe { File::from_raw_fd(socket) };
        tap.announce(GUEST).unwrap();
        let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut ready, PollTimeout::from(5000_u16)).unwrap(), 1, "nothing came");
        let mut frame = [0; 100];
        let n = socket.read(&mut frame).unwrap();
        assert_eq!(frame[..n], rarp(GUEST));
    });
}
