//! The device with queues in its hands and a tap of a network namespace behind it.

use std::net::UdpSocket;

use virtio_bindings::bindings::virtio_net::{VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF};

use super::tap::tests::{GUEST, in_a_namespace, ip, is_udp, network, once_free, up};
use super::*;
use crate::cpr::Mode;
use crate::cpr::fds::FdTable;
use crate::cpr::format::{HeaderInfo, StateReader, StateWriter};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::driver::{Driver, Piece};

const SLOT: u32 = 3;
const MERGED: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

fn config(queues: u16) -> NetConfig {
    NetConfig {
        id: Some("net0".into()),
        addr: None,
        tap: Some("t0".into()),
        fds: Vec::new(),
        mac: Some(GUEST),
        queues: Some(queues),
        vhost: false,
    }
}

fn open(queues: u16) -> Net {
    let net = Net::open("net0", &config(queues), false).unwrap();
    up();
    net
}

fn status(net: &Net) -> u8 {
    let mut status = [0];
    net.read_config(6, &mut status);
    status[0]
}

/// The next packet to the guest that is UDP's, with its header; and over how many buffers of `room` bytes it went.
fn receive(driver: &mut Driver, room: u32) -> (Vec<u8>, u16) {
    loop {
        let (head, length) = driver.used(RECEIVE).expect("no packet came");
        let mut packet = driver.bytes(RECEIVE, head, length);
        let buffers = u16::from_le_bytes([packet[10], packet[11]]);
        for _ in 1..buffers {
            let (head, length) = driver.used(RECEIVE).unwrap();
            packet.extend(driver.bytes(RECEIVE, head, length));
        }
        for _ in 0..buffers {
            driver.offer(RECEIVE, &[Piece::In(room)]);
        }
        if is_udp(&packet[HEADER..]) {
            return (packet, buffers);
        }
    }
}

fn hello(text: &[u8]) {
    UdpSocket::bind("192.0.2.1:0").unwrap().send_to(text, "192.0.2.2:9").unwrap();
}

/// What a device saves.
fn state(net: &Net) -> StateReader {
    let header = HeaderInfo {
        mode: Mode::CprTransfer,
        guest_name: "g".into(),
        guest_uuid: crate::config::Uuid([7; 16]),
        writer: "test".into(),
        created: 0,
    };
    let mut out = StateWriter::new(header);
    net.save(SLOT, &mut out).unwrap();
    StateReader::parse(&out.finish().unwrap()).unwrap()
}

/// A request for the address of 192.0.2.1, as the guest asks.
fn request() -> Vec<u8> {
    let mut request = vec![0; HEADER];
    request.extend([0xff; 6]);
    request.extend(GUEST.0);
    request.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    request.extend(GUEST.0);
    request.extend([192, 0, 2, 2, 0, 0, 0, 0, 0, 0, 192, 0, 2, 1]);
    request
}

#[test]
fn a_packet_from_the_guest_is_answered_and_one_to_it_comes_in_one_buffer() {
    in_a_namespace(|| {
        network("");
        let (net, mut driver) = (open(1), Driver::new(3));
        (0..64).for_each(|_| driver.offer(RECEIVE, &[Piece::In(2000)]));
        let request = request();
        let (header, frame) = request.split_at(HEADER);
        driver.offer(TRANSMIT, &[Piece::Out(header), Piece::Out(frame)]);
        driver.start(&net, 0);
        assert_eq!(driver.used(TRANSMIT), Some((0, 0)));
        let answer = std::iter::repeat_with(|| {
            let (head, length) = driver.used(RECEIVE).expect("no answer came");
            driver.bytes(RECEIVE, head, length)
        });
        let is_answer =
            |packet: &Vec<u8>| packet[HEADER + 12..HEADER + 14] == [8, 6] && packet[HEADER + 21] == 2;
        answer.into_iter().find(is_answer).unwrap();
        hello(b"hello");
        let (packet, buffers) = receive(&mut driver, 2000);
        assert_eq!(buffers, 1);
        assert!(packet.ends_with(b"hello"));
        driver.stop(&net);
    });
}

#[test]
fn a_long_packet_goes_over_as_many_buffers_as_it_needs_and_what_is_left_waits_for_the_next() {
    in_a_namespace(|| {
        network("");
        let (net, mut driver) = (open(1), Driver::new(3));
        (0..200).for_each(|_| driver.offer(RECEIVE, &[Piece::In(100)]));
        driver.start(&net, MERGED);
        for length in [1, 1000, 58, 59, 1400, 1458] {
            let text: Vec<u8> = (0..length).map(|n| n as u8).collect();
            hello(&text);
            let (packet, buffers) = receive(&mut driver, 100);
            assert_eq!(packet.len().div_ceil(100), usize::from(buffers));
            // A short frame is filled up.
            let at = HEADER + 14 + 20 + 8;
            assert_eq!(packet[at..at + length], text);
        }
    });
}

#[test]
fn over_a_stop_the_buffers_taken_ahead_go_back_and_no_packet_is_lost() {
    in_a_namespace(|| {
        network("");
        let (net, mut driver) = (open(1), Driver::new(3));
        (0..128).for_each(|_| driver.offer(RECEIVE, &[Piece::In(500)]));
        driver.start(&net, MERGED);
        let mut device = net;
        for round in 0..6_u8 {
            hello(&[round; 700]);
            let (packet, buffers) = receive(&mut driver, 500);
            assert_eq!((packet.last(), buffers), (Some(&round), 2));
            driver.stop(&device);
            hello(&[round | 0x80; 700]);
            let mut fds = FdTable::new();
            device.descriptors(Mode::CprTransfer, &mut fds).unwrap();
            let target = Net::adopt("net0", &config(1), &mut fds).unwrap();
            fds.finish().unwrap();
            target.load(SLOT, &mut state(&device)).unwrap();
            driver.start(&target, MERGED);
            device = target;
            let (packet, _) = receive(&mut driver, 500);
            assert_eq!(packet.last(), Some(&(round | 0x80)));
        }
    });
}

#[test]
fn a_tap_that_was_opened_again_has_its_guest_announce_itself_until_it_has() {
    in_a_namespace(|| {
        network("");
        let before = open(1);
        assert_eq!(status(&before), 1);
        let mut out = state(&before);
        drop(before);
        let after = once_free(|| Net::open("net0", &config(1), true));
        after.load(SLOT, &mut out).unwrap();
        after.resume();
        assert_eq!(status(&after), 3);
        let mut driver = Driver::new(3);
        driver.start(&after, 0);
        driver.offer(2, &[Piece::Out(&[3, 0]), Piece::In(1)]);
        driver.stop(&after);
        driver.start(&after, 0);
        let (head, length) = driver.used(2).unwrap();
        assert_eq!(driver.bytes(2, head + 1, length), [0]);
        assert_eq!(status(&after), 1);
    });
}

#[test]
fn a_driver_uses_as_many_pairs_as_there_are_and_no_more() {
    in_a_namespace(|| {
        network(" multi_queue");
        let (net, mut driver) = (open(2), Driver::new(5));
        let control = 4;
        // With the descriptor that the answer is in.
        let mut expected = Vec::new();
        let mut ask = |driver: &mut Driver, command: &[u8], answer: u8| {
            driver.offer(control, &[Piece::Out(command), Piece::In(1)]);
            expected.push((2 * expected.len() as u16, answer));
        };
        for (command, answer) in [
            (&[4, 0, 2, 0][..], 0),
            (&[4, 0, 0, 0], 1),
            (&[4, 0, 3, 0], 1),
            (&[4, 0, 1, 0], 0),
            (&[9, 9], 1),
            (&[4], 1),
        ] {
            ask(&mut driver, command, answer);
        }
        driver.start(&net, 1 << VIRTIO_NET_F_MQ);
        for (head, answer) in expected {
            assert_eq!(driver.used(control), Some((head, 1)));
            assert_eq!(driver.bytes(control, head + 1, 1), [answer]);
        }
    });
}

#[test]
fn another_address_or_more_pairs_than_there_are_is_refused() {
    in_a_namespace(|| {
        network(" multi_queue");
        let net = open(2);
        let mut other = config(2);
        other.mac = Some(Mac([2, 0, 0, 0, 0, 1]));
        let other = Net::open("net0", &other, false).unwrap();
        let message = other.load(SLOT, &mut state(&net)).unwrap_err().to_string();
        assert!(message.contains("address 52:54"), "{message}");
    });
}

#[test]
fn a_tap_that_was_deleted_blocks_what_would_take_it_along() {
    in_a_namespace(|| {
        network("");
        let net = open(1);
        for mode in Mode::ALL {
            assert!(net.blockers(mode).is_empty());
        }
        ip("link del t0");
        assert!(net.blockers(Mode::CprReboot).is_empty());
        for mode in [Mode::CprTransfer, Mode::CprExec] {
            let blockers = net.blockers(mode);
            assert_eq!(
                blockers[0].to_string(),
                "net0.tap: t0 was deleted; a reboot opens another one of that name"
            );
        }
    });
}

#[test]
fn a_tap_that_was_given_blocks_a_reboot_and_nothing_else() {
    in_a_namespace(|| {
        network("");
        let net = open(1);
        let mut fds = FdTable::new();
        net.descriptors(Mode::CprTransfer, &mut fds).unwrap();
        let given = NetConfig { tap: None, fds: vec![9], ..config(1) };
        let net = Net::adopt("net0", &given, &mut fds).unwrap();
        assert!(net.blockers(Mode::CprTransfer).is_empty() && net.blockers(Mode::CprExec).is_empty());
        let blockers = net.blockers(Mode::CprReboot);
        assert!(blockers[0].reason.contains("tap=t0"), "{}", blockers[0].reason);
    });
}
