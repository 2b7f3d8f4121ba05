//! A network with the guest: a tap, pings, a TCP stream that is checked both ways.

use std::collections::BTreeSet;
use std::fs::{self, DirEntry, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use guest_init::{link, message};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use serde::{Deserialize, Serialize};

use super::scenario::Net;

/// The name of the tap.
pub const TAP: &str = "cpr0";
/// The guest's address.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The guest's Ethernet address, which is QEMU's first too.
pub const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
/// The same as QEMU and `cpr-load` take it.
pub fn mac() -> String {
    MAC.map(|byte| format!("{byte:02x}")).join(":")
}

/// That of the host's own card, on a wire with one that is assigned to the guest.
pub const HOST_MAC: &str = "52:54:00:12:34:57";
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// How often a guest is pinged by its host.
pub const PING_EVERY: Duration = Duration::from_millis(2);
/// Pings that may be on their way at once. A tap holds a thousand; the guest's kernel drops its own answers when 172 of
/// them (what fits in the send buffer of its ICMP socket) wait to be sent.
const OUTSTANDING: u64 = 128;
/// How long pings wait for an answer when so many are on their way. Then they may all be lost, and the guest is asked with
/// single ones: more than the queues on the way hold would be lost by themselves.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is asked then.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// Bytes of answers that may wait to be read.
const RECEIVE_BUFFER: usize = 16 << 20;
/// Messages of the TCP stream that are on their way at once.
const WINDOW: u64 = 16;
/// The kernel's IPv4 header before an ICMP message that is read.
const IP_HEADER: usize = 20;

mod ioctl {
    nix::ioctl_write_ptr_bad!(tap_attach, libc::TUNSETIFF, libc::ifreq);
    nix::ioctl_write_int_bad!(tap_persist, libc::TUNSETPERSIST);
}

/// What was seen of the network since it was last asked. Times are in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NetReport {
    /// Answers to pings.
    pub answers: u64,
    /// Pings that later ones overtook and that have not come since.
    pub lost: u64,
    /// Answers that came after a later one.
    pub reordered: u64,
    /// Answers that came again.
    pub repeated: u64,
    /// The longest time between two answers, or since the last.
    pub gap: f64,
    /// Messages of the TCP stream that came back.
    pub messages: u64,
    /// The longest time between two of them, or since the last.
    pub stream_gap: f64,
    /// What broke the TCP stream.
    pub broken: Option<String>,
}

struct Seen {
    report: NetReport,
    next: u64,
    /// Those before `next` that have not been answered.
    missing: BTreeSet<u64>,
    answered: Instant,
    echoed: Instant,
}

/// A network with the guest. It lies in a network namespace of its own, which the calling thread enters for good.
pub struct Network {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Enters a network namespace of its own and makes the tap in it, or sets up the host's own card on the wire with the
/// guest's, before the guest's machine starts.
pub fn prepare(net: &Net) -> Result<()> {
    let interface = if net.card.is_some() {
        let card = own_card()?;
        link::up(&card, HOST).with_context(|| format!("setting up {card}"))?;
        card
    } else {
        unshare(CloneFlags::CLONE_NEWNET)
            .context("entering a network namespace (the lab's networks need root)")?;
        make(TAP, net.queues, HOST)?;
        TAP.to_owned()
    };
    // A tap that loses its owner for a while takes what was learnt with it, and what waits for an answer to "who has"
    // is overtaken by what comes after the answer.
    link::neighbour(&interface, GUEST, MAC).context("saying which address the guest has")
}

/// The interface that has the address of the host's own card.
pub fn own_card() -> Result<String> {
    let classes = fs::read_dir("/sys/class/net").context("listing the network interfaces")?;
    let is_own = |entry: &DirEntry| {
        fs::read_to_string(entry.path().join("address")).is_ok_and(|address| address.trim() == HOST_MAC)
    };
    let own =
        classes.flatten().find(is_own).context("the host has no card of its own on the guest's wire")?;
    Ok(own.file_name().to_string_lossy().into_owned())
}

/// Makes a tap that stays, for so many queues, and gives it its address.
pub fn make(name: &str, queues: u16, address: Ipv4Addr) -> Result<()> {
    tap(name, queues)?;
    link::up(name, address).with_context(|| format!("setting up the tap {name}"))
}

/// Makes a tap that stays, for so many queues.
pub fn tap(name: &str, queues: u16) -> Result<()> {
    let tun =
        OpenOptions::new().read(true).write(true).open("/dev/net/tun").context("opening /dev/net/tun")?;
    let mut request = link::request(name)?;
    let several = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several) as i16;
    attach(&tun, &request).with_context(|| format!("making the tap {name}"))
}

fn attach(tun: &File, request: &libc::ifreq) -> Result<()> {
    // SAFETY: the descriptor is open and the request outlives the call.
    unsafe {
        ioctl::tap_attach(tun.as_raw_fd(), std::ptr::from_ref(request))?;
        ioctl::tap_persist(tun.as_raw_fd(), 1)?;
    }
    Ok(())
}

impl Network {
    /// Begins pings, one after so long, and the TCP stream with a guest that is up.
    pub fn start(ping_every: Duration) -> Result<Self> {
        let network =
            Self { seen: Arc::new(Mutex::new(Seen::new())), stop: Arc::new(AtomicBool::new(false)) };
        let stream = connect()?;
        network.ping(ping_every)?;
        network.stream(stream)?;
        Ok(network)
    }

    /// What was seen since this was last asked.
    pub fn take(&self) -> NetReport {
        let mut seen = lock(&self.seen);
        let fresh = NetReport { broken: seen.report.broken.clone(), ..NetReport::default() };
        let mut report = std::mem::replace(&mut seen.report, fresh);
        report.gap = report.gap.max(seen.answered.elapsed().as_secs_f64() * 1e3);
        report.stream_gap = report.stream_gap.max(seen.echoed.elapsed().as_secs_f64() * 1e3);
        report
    }

    fn ping(&self, every: Duration) -> Result<()> {
        // SAFETY: the call takes numbers only; its result is checked before it is owned.
        let socket =
            unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_ICMP) };
        if socket < 0 {
            return Err(std::io::Error::last_os_error()).context("opening a raw socket");
        }
        // SAFETY: the descriptor is new and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        // Sending to and receiving from an address are the same calls for a raw socket.
        let socket = Arc::new(UdpSocket::from(socket));
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER).context("enlarging a socket's buffer")?;
        let (out, stop) = (Arc::clone(&socket), Arc::clone(&self.stop));
        let seen = Arc::clone(&self.seen);
        thread::spawn(move || {
            let mut due = Instant::now();
            let mut sent = due;
            for number in 0.. {
                while lock(&seen).is_waiting(number, sent) {
                    thread::sleep(every);
                    due = Instant::now();
                }
                if stop.load(SeqCst) {
                    return;
                }
                let _ = out.send_to(&echo_request(number), (GUEST, 0));
                sent = Instant::now();
                due += every;
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        });
        let (seen, stop) = (Arc::clone(&self.seen), Arc::clone(&self.stop));
        thread::spawn(move || {
            let mut packet = [0; 256];
            while !stop.load(SeqCst) {
                let Ok(length) = socket.recv(&mut packet) else { continue };
                if let Some(number) = packet[..length].get(IP_HEADER..).and_then(echo_reply) {
                    lock(&seen).answer(number);
                }
            }
        });
        Ok(())
    }

    fn stream(&self, mut out: TcpStream) -> Result<()> {
        let mut back = out.try_clone()?;
        let echoed = Arc::new(AtomicU64::new(0));
        let (count, stop, seen) = (Arc::clone(&echoed), Arc::clone(&self.stop), Arc::clone(&self.seen));
        thread::spawn(move || {
            let mut number = 0;
            while !stop.load(SeqCst) {
                if number < count.load(SeqCst) + WINDOW {
                    if let Err(error) = out.write_all(&message::make(number)) {
                        lock(&seen).broken(&error.to_string());
                        return;
                    }
                    number += 1;
                } else {
                    thread::sleep(Duration::from_millis(1));
                }
            }
        });
        let (seen, stop) = (Arc::clone(&self.seen), Arc::clone(&self.stop));
        thread::spawn(move || {
            let mut buffer = [0; message::LENGTH];
            for number in 0.. {
                let read = back.read_exact(&mut buffer).map_err(|error| error.to_string());
                if stop.load(SeqCst) {
                    return;
                }
                if let Err(wrong) = read.and_then(|()| message::check(&buffer, number)) {
                    lock(&seen).broken(&wrong);
                    return;
                }
                echoed.store(number + 1, SeqCst);
                lock(&seen).echo();
            }
        });
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
    }
}

impl Seen {
    fn new() -> Self {
        let now = Instant::now();
        Self { report: NetReport::default(), next: 0, missing: BTreeSet::new(), answered: now, echoed: now }
    }

    /// Whether a ping is to wait until earlier ones are answered, the last of which was sent then.
    fn is_waiting(&self, number: u64, sent: Instant) -> bool {
        let silent = self.answered.elapsed() >= PATIENCE;
        number >= self.next + OUTSTANDING && !(silent && sent.elapsed() >= ASK_EVERY)
    }

    fn answer(&mut self, number: u64) {
        self.report.gap = self.report.gap.max(self.answered.elapsed().as_secs_f64() * 1e3);
        self.answered = Instant::now();
        self.report.answers += 1;
        if number >= self.next {
            self.report.lost += number - self.next;
            self.missing.extend(self.next..number);
            self.next = number + 1;
        } else if self.missing.remove(&number) {
            self.report.reordered += 1;
            self.report.lost = self.report.lost.saturating_sub(1);
        } else {
            self.report.repeated += 1;
        }
    }

    fn echo(&mut self) {
        self.report.stream_gap = self.report.stream_gap.max(self.echoed.elapsed().as_secs_f64() * 1e3);
        self.echoed = Instant::now();
        self.report.messages += 1;
    }

    fn broken(&mut self, what: &str) {
        self.report.broken.get_or_insert_with(|| what.to_owned());
    }
}

fn connect() -> Result<TcpStream> {
    let address = SocketAddr::from((GUEST, message::PORT));
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        match TcpStream::connect_timeout(&address, Duration::from_secs(2)) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("connecting to the guest's {address}"));
            }
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// An ICMP echo request that carries a number (RFC 792).
fn echo_request(number: u64) -> [u8; 16] {
    let mut packet = [0; 16];
    packet[0] = 8;
    packet[8..].copy_from_slice(&number.to_be_bytes());
    let sum: u32 = packet.chunks_exact(2).map(|half| u32::from(u16::from_be_bytes([half[0], half[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The number that an ICMP echo reply carries.
fn echo_reply(packet: &[u8]) -> Option<u64> {
    (packet.first() == Some(&0)).then_some(())?;
    Some(u64::from_be_bytes(packet.get(8..16)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_and_late_answers_are_counted_apart() {
        let mut seen = Seen::new();
        for number in [0, 1, 4, 3, 5, 3] {
            seen.answer(number);
        }
        let NetReport { answers, lost, reordered, repeated, .. } = seen.report;
        assert_eq!((answers, lost, reordered, repeated), (6, 1, 1, 1));
    }

    #[test]
    fn a_guest_that_is_silent_is_asked_slowly() {
        let now = Instant::now();
        let long_ago = now.checked_sub(2 * PATIENCE).unwrap();
        let seen = |answered| Seen { next: 10, answered, ..Seen::new() };
        for (number, answered, sent, waits) in [
            (9 + OUTSTANDING, now, now, false),
            (10 + OUTSTANDING, now, long_ago, true),
            (10 + OUTSTANDING, long_ago, now, true),
            (10 + OUTSTANDING, long_ago, long_ago, false),
        ] {
            assert_eq!(seen(answered).is_waiting(number, sent), waits, "{number} {answered:?} {sent:?}");
        }
    }
}
