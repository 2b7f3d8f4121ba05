//! The network: an address, and a server that checks numbered messages and gives each back.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use guest_init::{link, message};

use crate::memory::Checks;
use crate::power;

const INTERFACE: &str = "eth0";

/// Answers messages without end; whatever is wrong with one is counted, and so is a connection that breaks.
pub fn run(checks: &Checks, address: Ipv4Addr) {
    if let Err(error) = serve(checks, address) {
        checks.error(|| format!("network: {error}"));
    }
}

fn serve(checks: &Checks, address: Ipv4Addr) -> io::Result<()> {
    // A service is started when the address is there.
    if power::is_init() {
        set_up(address)?;
    }
    for stream in TcpListener::bind((address, message::PORT))?.incoming() {
        if let Err(error) = answer(checks, stream?) {
            checks.error(|| format!("TCP stream: {error}"));
        }
    }
    Ok(())
}

/// Waits for the interface and gives it its address.
fn set_up(address: Ipv4Addr) -> io::Result<()> {
    for _ in 0..500 {
        if Path::new("/sys/class/net").join(INTERFACE).exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    link::up(INTERFACE, address).map_err(|error| io::Error::other(format!("setting up {INTERFACE}: {error}")))
}

fn answer(checks: &Checks, mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; message::LENGTH];
    for number in 0.. {
        match stream.read_exact(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            result => result?,
        }
        if let Err(wrong) = message::check(&buffer, number) {
            checks.error(|| wrong);
        }
        stream.write_all(&buffer)?;
        checks.pass();
    }
    Ok(())
}
