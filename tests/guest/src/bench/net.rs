//! Pings and streams to a host that has a server for each.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use guest_init::measure::{Measured, PING, TCP_ECHO, TCP_SINK, TCP_SOURCE, UDP_ECHO};

use super::{Result, since};

/// Bytes that a stream moves in one call at the most.
const PIECE: usize = 128 << 10;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends datagrams, each when the last has come back, for so long.
pub fn udp_ping(host: Ipv4Addr, time: Duration) -> Result<Measured> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect((host, UDP_ECHO))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let (mut lost, mut number) = (0, 0_u64);
    pings(time, || {
        number += 1;
        let mut ping = [0; PING];
        ping[..8].copy_from_slice(&number.to_le_bytes());
        loop {
            socket.send(&ping)?;
            let mut answer = [0; PING];
            loop {
                match socket.recv(&mut answer) {
                    Ok(PING) if answer == ping => return Ok(()),
                    // A late answer to one that was given up.
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock && lost < 3 => break lost += 1,
                    Err(error) => return Err(format!("ping {number}, {lost} lost: {error}").into()),
                }
            }
        }
    })
}

/// The same over a stream.
pub fn tcp_ping(host: Ipv4Addr, time: Duration) -> Result<Measured> {
    let mut stream = connect(host, TCP_ECHO)?;
    pings(time, || {
        let mut ping = [0x5a; PING];
        stream.write_all(&ping)?;
        Ok(stream.read_exact(&mut ping)?)
    })
}

fn pings(time: Duration, mut ping: impl FnMut() -> Result<()>) -> Result<Measured> {
    // The first ones find out where the host is.
    for _ in 0..5 {
        ping()?;
    }
    let mut times = Vec::with_capacity(1 << 16);
    let start = Instant::now();
    while start.elapsed() < time {
        let sent = Instant::now();
        ping()?;
        times.push(since(sent));
    }
    let bytes = (times.len() * PING) as u64;
    Ok(Measured::of_times(times, bytes, since(start)))
}

/// Sends for so long, and waits until the host has it all.
pub fn send(host: Ipv4Addr, time: Duration) -> Result<Measured> {
    let mut stream = connect(host, TCP_SINK)?;
    let piece = vec![0x5a; PIECE];
    let (mut count, mut bytes) = (0, 0);
    let start = Instant::now();
    while start.elapsed() < time {
        bytes += stream.write(&piece)? as u64;
        count += 1;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut taken = [0; 8];
    stream.read_exact(&mut taken)?;
    let ns = since(start);
    match u64::from_le_bytes(taken) {
        taken if taken == bytes => Ok(Measured { count, bytes, ns, ..Measured::default() }),
        taken => Err(format!("the host took {taken} of {bytes} bytes").into()),
    }
}

/// Receives for so long.
pub fn receive(host: Ipv4Addr, time: Duration) -> Result<Measured> {
    let mut stream = connect(host, TCP_SOURCE)?;
    let mut piece = vec![0; PIECE];
    let (mut count, mut bytes) = (0, 0);
    let start = Instant::now();
    while start.elapsed() < time {
        match stream.read(&mut piece)? {
            0 => return Err("the host ended the stream".into()),
            length => bytes += length as u64,
        }
        count += 1;
    }
    Ok(Measured { count, bytes, ns: since(start), ..Measured::default() })
}

fn connect(host: Ipv4Addr, port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&(host, port).into(), PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}
