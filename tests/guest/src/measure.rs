//! What a test guest is asked to measure of its devices, and what it answers. Both go over its console as JSON.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// The port on which the host gives each datagram back.
pub const UDP_ECHO: u16 = 7100;
/// The port on which the host gives each byte of a stream back.
pub const TCP_ECHO: u16 = 7101;
/// The port on which the host takes a stream to its end, and then says how many bytes it had (8, little-endian).
pub const TCP_SINK: u16 = 7102;
/// The port on which the host sends without end.
pub const TCP_SOURCE: u16 = 7103;
/// Bytes of a ping.
pub const PING: usize = 64;

/// What a disk is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Reads.
    Read,
    /// Writes.
    Write,
}

/// What is measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Requests to a disk, past the guest's page cache.
    Disk {
        /// As in /dev.
        device: String,
        /// What they ask for.
        access: Access,
        /// Whether they go all over the disk, or one after the other.
        random: bool,
        /// Bytes of each.
        size: u32,
        /// How many are under way at once.
        depth: u32,
    },
    /// Flushes of a disk, each after a write of 4 KiB; only the flush counts.
    Flush {
        /// As in /dev.
        device: String,
    },
    /// Datagrams to the host and back, one at a time.
    UdpPing {
        /// The host's address.
        host: Ipv4Addr,
    },
    /// The same over a stream.
    TcpPing {
        /// The host's address.
        host: Ipv4Addr,
    },
    /// A stream to the host.
    TcpSend {
        /// The host's address.
        host: Ipv4Addr,
    },
    /// A stream from the host.
    TcpReceive {
        /// The host's address.
        host: Ipv4Addr,
    },
}

/// What to measure, and for how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// What.
    pub task: Task,
    /// For how many milliseconds.
    pub ms: u64,
}

/// What was measured. Times are in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// Requests, pings, or calls that moved a piece of a stream.
    pub count: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// How long it took.
    pub ns: u64,
    /// The median of the times that single requests took; 0 where none were taken.
    pub median: u64,
    /// What 99 of 100 did not exceed.
    pub p99: u64,
}

impl Measured {
    /// Of requests with their times.
    pub fn of_times(mut times: Vec<u64>, bytes: u64, ns: u64) -> Self {
        times.sort_unstable();
        let at = |percent: usize| times.get((times.len() * percent).div_ceil(100).saturating_sub(1));
        let at = |percent| at(percent).copied().unwrap_or_default();
        Self { count: times.len() as u64, bytes, ns, median: at(50), p99: at(99) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_hundred_times_the_99th_is_exceeded_by_one() {
        let measured = Measured::of_times((1..=100).rev().collect(), 400, 9);
        assert_eq!(measured, Measured { count: 100, bytes: 400, ns: 9, median: 50, p99: 99 });
        assert_eq!(Measured::of_times(vec![7], 0, 0).p99, 7);
        assert_eq!(Measured::of_times(Vec::new(), 0, 0).median, 0);
    }

    #[test]
    fn an_order_fits_a_line_of_the_console() {
        let task = Task::Disk {
            device: "vda".into(),
            access: Access::Write,
            random: false,
            size: 1 << 20,
            depth: 32,
        };
        let order = Order { task, ms: 10_000 };
        let line = serde_json::to_string(&order).unwrap();
        assert!(line.len() < 200, "{line}");
        assert_eq!(serde_json::from_str::<Order>(&line).unwrap(), order);
    }
}
