//! What is measured.

use std::net::Ipv4Addr;

use clap::ValueEnum;
use guest_init::measure::{Access, Measured, Task};
use serde::{Deserialize, Serialize};

use super::place::Place;

/// A part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Disks
    Block,
    /// Networks
    Net,
}

/// What of a measurement is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Figure {
    /// The median time of a request.
    Median,
    /// The time that 99 of 100 requests do not exceed.
    P99,
    /// Requests a second.
    Rate,
    /// Bytes a second.
    Throughput,
}

impl Figure {
    /// Its unit.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Median => "us",
            Self::P99 => "us, p99",
            Self::Rate => "1/s",
            Self::Throughput => "MB/s",
        }
    }

    /// Its value in that unit.
    pub fn of(self, measured: &Measured) -> f64 {
        let seconds = measured.ns.max(1) as f64 / 1e9;
        match self {
            Self::Median => measured.median as f64 / 1e3,
            Self::P99 => measured.p99 as f64 / 1e3,
            Self::Rate => measured.count as f64 / seconds,
            Self::Throughput => measured.bytes as f64 / 1e6 / seconds,
        }
    }

    /// How many times as fast `ours` is as `other`: more is better, whatever the figure.
    pub fn speed(self, ours: f64, other: f64) -> f64 {
        match self {
            Self::Median | Self::P99 => other / ours,
            Self::Rate | Self::Throughput => ours / other,
        }
    }
}

/// One measurement.
#[derive(Debug, Clone)]
pub struct Test {
    /// What it is called.
    pub name: String,
    /// What the guest does; `host` is the guest's own host's address.
    pub task: fn(device: &str, host: Ipv4Addr) -> Task,
    /// The disk, or the number of the network.
    pub device: Device,
    /// What of it is looked at.
    pub figures: &'static [Figure],
}

/// What a test is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The guest's n-th disk.
    Disk(usize),
    /// The guest's n-th network.
    Net(usize),
}

fn disk(device: &str, access: Access, random: bool, size: u32, depth: u32) -> Task {
    Task::Disk { device: device.into(), access, random, size, depth }
}

type Line = (&'static str, fn(&str, Ipv4Addr) -> Task, &'static [Figure]);

const TIMES: &[Figure] = &[Figure::Median, Figure::P99];

const BLOCK: [Line; 6] = [
    ("4 KiB random reads, 1 at a time", |name, _| disk(name, Access::Read, true, 4 << 10, 1), TIMES),
    ("4 KiB random reads, 32", |name, _| disk(name, Access::Read, true, 4 << 10, 32), &[Figure::Rate]),
    ("4 KiB random writes, 32", |name, _| disk(name, Access::Write, true, 4 << 10, 32), &[Figure::Rate]),
    (
        "128 KiB reads in order, 8",
        |name, _| disk(name, Access::Read, false, 128 << 10, 8),
        &[Figure::Throughput],
    ),
    (
        "128 KiB writes in order, 8",
        |name, _| disk(name, Access::Write, false, 128 << 10, 8),
        &[Figure::Throughput],
    ),
    ("flushes", |name, _| Task::Flush { device: name.into() }, &[Figure::Median]),
];

const NET: [Line; 4] = [
    ("64 bytes there and back, UDP", |_, host| Task::UdpPing { host }, TIMES),
    ("64 bytes there and back, TCP", |_, host| Task::TcpPing { host }, TIMES),
    ("TCP from the host", |_, host| Task::TcpReceive { host }, &[Figure::Throughput]),
    ("TCP to the host", |_, host| Task::TcpSend { host }, &[Figure::Throughput]),
];

/// All that is measured at a place, in this order.
pub fn tests(place: &Place) -> Vec<Test> {
    let mut tests = Vec::new();
    let mut add = |kind: &str, device, lines: &[Line]| {
        let test = |(name, task, figures): &Line| {
            let name = format!("{kind}: {name}");
            Test { name, task: *task, device, figures }
        };
        tests.extend(lines.iter().map(test));
    };
    if place.has(Part::Block) {
        add("disk, direct", Device::Disk(0), &BLOCK);
        add("disk, cached", Device::Disk(1), &BLOCK);
    }
    if place.has(Part::Net) {
        add("net", Device::Net(0), &NET);
        if place.vhost {
            add("net, vhost", Device::Net(1), &NET);
        }
    }
    tests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faster_is_more_than_one_for_times_and_for_rates() {
        assert!(Figure::Median.speed(10.0, 20.0) > 1.0);
        assert!(Figure::Rate.speed(20.0, 10.0) > 1.0);
    }

    #[test]
    fn figures_have_the_units_that_they_say() {
        let measured = Measured { count: 50, bytes: 4_000_000, ns: 500_000_000, median: 2_500, p99: 9_000 };
        let values = [Figure::Median, Figure::P99, Figure::Rate, Figure::Throughput].map(|f| f.of(&measured));
        assert_eq!(values.map(|value| value.round() as u64), [3, 9, 100, 8]);
    }
}
