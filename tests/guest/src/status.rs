//! The figures that a test guest answers `STATUS?` with. Times are in nanoseconds.

use serde::{Deserialize, Serialize};

/// What a test guest has seen since it started, or for gaps and lateness since `GAP RESET`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// CLOCK_MONOTONIC now.
    pub monotonic: u64,
    /// CLOCK_REALTIME now.
    pub realtime: u64,
    /// The kernel's current clock source.
    pub clocksource: String,
    /// What wakes CPU 0: `lapic-deadline`, `lapic`, …
    pub clockevent: String,
    /// One heartbeat for each CPU.
    pub heartbeats: Vec<Heartbeat>,
    /// Steps back of each clock.
    pub clocks: Vec<ClockWatch>,
    /// The memory that is written and verified.
    pub memory: Checked,
    /// The FPU, SSE and AVX registers that are held and verified.
    pub registers: Checked,
    /// The entropy device that is read.
    pub random: Checked,
    /// A periodic timer.
    pub timer: Timer,
    /// Kernel messages of the classes in [`crate::kernel_log`] so far.
    pub kernel_messages: u64,
    /// The disks under load, if there are any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskWatch>,
    /// The messages of the TCP stream, if there is a network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net: Option<Checked>,
    /// The messages over AF_VSOCK, if it has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<Checked>,
    /// The copies and interrupts of the educational device, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edu: Option<Checked>,
    /// The register of the mediated device, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mediated: Option<Checked>,
    /// What its PCI devices have in their ROMs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roms: Vec<Rom>,
}

/// The beginning of a PCI device's expansion ROM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rom {
    /// Vendor and device.
    pub device: String,
    /// Its CRC-32.
    pub crc: u32,
}

/// A thread on one CPU that wakes every 10 ms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Times it woke.
    pub beats: u64,
    /// Longest time between two beats, by CLOCK_MONOTONIC.
    pub gap: u64,
    /// When that gap ended, by CLOCK_MONOTONIC.
    pub gap_at: u64,
}

/// Steps back of one clock, read on all CPUs in turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockWatch {
    /// `monotonic`, `realtime`, `boottime` or `tsc`.
    pub clock: String,
    /// Times that a CPU read less than it had read before itself.
    pub own_steps: u64,
    /// Times that a CPU read less than another had read before.
    pub cross_steps: u64,
    /// Largest step back, in the clock's unit.
    pub worst: u64,
}

/// Something written, held and verified over and over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// Whole passes.
    pub passes: u64,
    /// Mismatches.
    pub errors: u64,
    /// The first mismatch, in words.
    pub first: Option<String>,
}

/// A timer that fires every 50 ms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timer {
    /// Expirations counted.
    pub fired: u64,
    /// Expirations that the clock says are due and the timer did not count.
    pub missing: u64,
    /// Longest time from an expiration to the thread seeing it.
    pub late: u64,
}

/// A disk under load.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskWatch {
    /// Its device's name.
    pub disk: String,
    /// Writes acknowledged.
    pub writes: u64,
    /// Reads made.
    pub reads: u64,
    /// Flushes acknowledged.
    pub syncs: u64,
    /// The longest time that one request took, or has been out.
    pub longest: u64,
    /// Requests that failed, and blocks that were not what had been acknowledged.
    pub errors: u64,
    /// The first of them, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<String>,
    /// Whether the load has ended and all that was acknowledged was read once more.
    #[serde(default)]
    pub finished: bool,
}
