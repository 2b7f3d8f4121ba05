//! The host's end of the networks: a server for each thing that a guest measures, on all addresses.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use anyhow::{Context, Result};
use guest_init::measure::{TCP_ECHO, TCP_SINK, TCP_SOURCE, UDP_ECHO};

/// Bytes that a stream moves in one call at the most.
const PIECE: usize = 128 << 10;

/// Starts them, for as long as the process lives.
pub fn start() -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, UDP_ECHO)).context("opening a UDP port")?;
    thread::spawn(move || {
        let mut datagram = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut datagram) {
            let _ = socket.send_to(&datagram[..length], from);
        }
    });
    listen(TCP_ECHO, echo)?;
    listen(TCP_SINK, sink)?;
    listen(TCP_SOURCE, source)
}

/// Serves each connection on a thread of its own: one that hangs must not keep the others waiting.
fn listen(port: u16, serve: fn(TcpStream) -> std::io::Result<()>) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).context("opening a TCP port")?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // The guest ends a stream as it likes.
            thread::spawn(move || stream.set_nodelay(true).and_then(|()| serve(stream)));
        }
    });
    Ok(())
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let mut piece = [0; 2048];
    loop {
        match stream.read(&mut piece)? {
            0 => return Ok(()),
            length => stream.write_all(&piece[..length])?,
        }
    }
}

fn sink(mut stream: TcpStream) -> std::io::Result<()> {
    let mut piece = vec![0; PIECE];
    let mut bytes = 0_u64;
    loop {
        match stream.read(&mut piece)? {
            0 => return stream.write_all(&bytes.to_le_bytes()),
            length => bytes += length as u64,
        }
    }
}

fn source(mut stream: TcpStream) -> std::io::Result<()> {
    let piece = vec![0x5a; PIECE];
    loop {
        stream.write_all(&piece)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(with: fn(TcpStream) -> std::io::Result<()>) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || with(listener.accept().unwrap().0));
        TcpStream::connect(address).unwrap()
    }

    #[test]
    fn the_sink_says_how_much_it_took() {
        let mut stream = serve(sink);
        stream.write_all(&vec![1; 300_000]).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut taken = [0; 8];
        stream.read_exact(&mut taken).unwrap();
        assert_eq!(u64::from_le_bytes(taken), 300_000);
    }

    #[test]
    fn the_echo_gives_back_what_it_was_given() {
        let mut stream = serve(echo);
        stream.write_all(b"ping").unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"ping");
    }
}
