//! Measures the guest's devices on demand, and does nothing besides: no load, no heartbeats.
//!
//! 1. With `guest.bench=10.0.0.2,10.0.1.2` on the kernel's command line (`eth0`'s address, `eth1`'s, …; `on` for none)
//!    this is all that the guest does.
//! 2. Each line that the console brings is an [`Order`]; the answer is a [`Measured`], or what went wrong.

mod disk;
mod net;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use guest_init::link;
use guest_init::measure::{Measured, Order, Task};

use crate::console::Console;
use crate::setup;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Longest order, in bytes.
const LONGEST: usize = 512;

/// Carries orders out without end.
pub fn run(console: &str, addresses: &[Ipv4Addr]) -> Result<()> {
    let console = Console::open(&format!("/dev/{console}"))?;
    for (index, address) in addresses.iter().enumerate() {
        let name = format!("eth{index}");
        link::up(&name, *address).map_err(|error| format!("setting up {name}: {error}"))?;
    }
    setup::quiet_console();
    console.reply("READY");
    let mut line = Vec::new();
    let mut buffer = [0; 64];
    loop {
        let length = console.read(&mut buffer)?;
        for &byte in &buffer[..length] {
            if byte != b'\n' && line.len() < LONGEST {
                line.push(byte);
                continue;
            }
            let answer = carry_out(&line).unwrap_or_else(|error| format!("ERROR {error}"));
            line.clear();
            console.reply(&answer);
        }
    }
}

fn carry_out(line: &[u8]) -> Result<String> {
    let Order { task, ms } = serde_json::from_slice(line)?;
    Ok(serde_json::to_string(&measure(&task, Duration::from_millis(ms))?)?)
}

fn measure(task: &Task, time: Duration) -> Result<Measured> {
    match task {
        Task::Disk { device, access, random, size, depth } => {
            disk::requests(device, *access, *random, *size, *depth, time)
        }
        Task::Flush { device } => disk::flushes(device, time),
        Task::UdpPing { host } => net::udp_ping(*host, time),
        Task::TcpPing { host } => net::tcp_ping(*host, time),
        Task::TcpSend { host } => net::send(*host, time),
        Task::TcpReceive { host } => net::receive(*host, time),
    }
}

/// What has gone by since then, in nanoseconds.
fn since(start: Instant) -> u64 {
    start.elapsed().as_nanos() as u64
}
