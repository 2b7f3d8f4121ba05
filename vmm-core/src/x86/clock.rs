//! The guest's clocks over a handover: kvmclock and TSC go on in step with the host's, and never step back.
//!
//! 1. kvmclock is saved with what else the host's clocks showed at that instant ([`ClockState`]). On load it is set to
//!    what it was, and what has passed since, and then read back: a set that came late (the thread was preempted) is
//!    made again.
//! 2. What has passed is told by the host's TSC where it can be trusted, for KVM's own clock counts by it: exact to the
//!    nanosecond, deaf to steps and slews of the host's wall clock. It can be if it went on since the save at the rate
//!    that another clock confirms: `CLOCK_BOOTTIME` on the same boot; on another boot (kexec leaves the TSC counting)
//!    the wall clock, which is then good to a second or two only.
//! 3. Otherwise by `CLOCK_BOOTTIME`, which goes on over suspend and has no steps; on another boot by the wall clock.
//!    If that went backward, nothing has passed.
//! 4. The guest's TSC keeps its offset to the host's for as long as the host's goes on. Where the host's was reset, or
//!    runs at another rate, the offset is shifted so that the guest's counts what has passed, the same for all vCPUs.

use std::sync::OnceLock;
use std::time::Duration;

use kvm_bindings::{KVM_CLOCK_HOST_TSC, kvm_clock_data};
use kvm_ioctls::VmFd;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use vmm_sys_util::errno;

use crate::config::Uuid;
use crate::cpr::format::{Section, SectionKind};
use crate::vcpu::state::Tsc;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Readings of a clock between two of another: the closest of so many is taken.
const READINGS: u32 = 4;
/// A reading within so many ns is not tried again, and a clock that is off by no more is right.
const CLOSE_NS: u64 = 1_000;
/// How often the clock is set until it is right.
const SETTINGS: u32 = 4;
/// KVM scales the TSC only if the rates differ by more than this (its `tsc_tolerance_ppm`).
const SAME_RATE_PPM: u64 = 250;

/// Why the clocks could not be read or set.
#[derive(Debug, thiserror::Error)]
pub enum ClockError {
    /// An ioctl failed.
    #[error("{ioctl}: {source}")]
    Ioctl {
        /// The ioctl.
        ioctl: &'static str,
        /// What the kernel answered.
        source: errno::Error,
    },
    /// A host clock could not be read.
    #[error("reading the host's clocks: {0}")]
    Host(#[from] nix::Error),
    /// Which boot this is could not be read.
    #[error("reading {BOOT_ID}: {0}")]
    BootId(String),
    /// A rate of 0 kHz.
    #[error("the saved clock has a host TSC of 0 kHz")]
    Rate,
}

/// kvmclock, and the host's clocks at the same instant. On the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockState {
    /// kvmclock in ns.
    pub clock_ns: u64,
    /// The host's TSC.
    pub host_tsc: u64,
    /// Whether KVM read clock and TSC as one (`KVM_CLOCK_HOST_TSC`); else they are some hundred ns apart.
    pub paired: bool,
    /// `CLOCK_BOOTTIME` in ns.
    pub boottime_ns: u64,
    /// `CLOCK_REALTIME` in ns.
    pub realtime_ns: u64,
    /// The rate of the host's TSC, as KVM took it.
    pub host_tsc_khz: u32,
    /// Which boot of the host it was (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: [u8; 16],
}

impl Section for ClockState {
    const KIND: SectionKind = SectionKind::Clock;
    const VERSION: u16 = 1;
    const OLDEST: u16 = 1;
}

/// The host's TSC.
pub fn host_tsc() -> u64 {
    // SAFETY: every x86-64 processor has RDTSC, and Linux lets user mode run it unless this process asked otherwise.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// `a * b / c`, saturating; 0 for `c` = 0.
pub(crate) fn mul_div(a: u64, b: u64, c: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    u64::try_from(product.checked_div(u128::from(c)).unwrap_or(0)).unwrap_or(u64::MAX)
}

fn cycles_to_ns(cycles: u64, khz: u32) -> u64 {
    mul_div(cycles, 1_000_000, u64::from(khz))
}

fn ns_to_cycles(ns: u64, khz: u32) -> u64 {
    mul_div(ns, u64::from(khz), 1_000_000)
}

/// The guest's count for a host's, before the offset.
fn scale(host_tsc: u64, guest_khz: u32, host_khz: u32) -> u64 {
    let apart = u64::from(guest_khz.abs_diff(host_khz));
    if apart * 1_000_000 <= u64::from(host_khz) * SAME_RATE_PPM {
        return host_tsc;
    }
    mul_div(host_tsc, u64::from(guest_khz), u64::from(host_khz))
}

/// Which boot of the host this is. Read once; call it early, where files can still be opened and nobody waits.
pub fn boot_id() -> Result<[u8; 16], ClockError> {
    static ID: OnceLock<[u8; 16]> = OnceLock::new();
    if let Some(id) = ID.get() {
        return Ok(*id);
    }
    let text = std::fs::read_to_string(BOOT_ID).map_err(|e| ClockError::BootId(e.to_string()))?;
    let id: Uuid =
        text.trim().parse().map_err(|_| ClockError::BootId(format!("'{}' is no UUID", text.trim())))?;
    Ok(*ID.get_or_init(|| id.0))
}

/// The host's clocks at one instant.
#[derive(Debug, Clone, Copy)]
struct HostTime {
    tsc: u64,
    boottime_ns: u64,
    realtime_ns: u64,
}

fn clock_ns(clock: ClockId) -> Result<u64, ClockError> {
    let time = clock_gettime(clock)?;
    Ok((time.tv_sec() as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec() as u64))
}

impl HostTime {
    fn now() -> Result<Self, ClockError> {
        Ok(bracketed(|| Ok(()))?.0)
    }
}

/// What a reading gave, with the host's clocks in its middle: that of several around which they moved the least.
fn bracketed<T>(mut read: impl FnMut() -> Result<T, ClockError>) -> Result<(HostTime, T, u64), ClockError> {
    let mut best: Option<(HostTime, T, u64)> = None;
    for _ in 0..READINGS {
        let (start_ns, start) = (clock_ns(ClockId::CLOCK_BOOTTIME)?, host_tsc());
        let value = read()?;
        let (end, end_ns) = (host_tsc(), clock_ns(ClockId::CLOCK_BOOTTIME)?);
        let realtime = clock_ns(ClockId::CLOCK_REALTIME)?;
        let width = end_ns.saturating_sub(start_ns);
        if best.as_ref().is_none_or(|(.., least)| width < *least) {
            let half = width / 2;
            let time = HostTime {
                tsc: start + end.saturating_sub(start) / 2,
                boottime_ns: start_ns + half,
                realtime_ns: realtime.saturating_sub(half),
            };
            best = Some((time, value, width));
        }
        if width <= CLOSE_NS {
            break;
        }
    }
    best.ok_or(ClockError::Host(nix::Error::EINVAL))
}

/// kvmclock in ns with the host's clocks at that instant, whether KVM read the TSC with it, and within how many ns.
fn read_kvmclock(vm: &VmFd, host_khz: u32) -> Result<(u64, HostTime, bool, u64), ClockError> {
    let get = || vm.get_clock().map_err(|source| ClockError::Ioctl { ioctl: "KVM_GET_CLOCK", source });
    let (mut time, data, width) = bracketed(get)?;
    let paired = data.flags & KVM_CLOCK_HOST_TSC != 0;
    if paired {
        let late = cycles_to_ns(data.host_tsc.saturating_sub(time.tsc), host_khz);
        let early = cycles_to_ns(time.tsc.saturating_sub(data.host_tsc), host_khz);
        time.tsc = data.host_tsc;
        time.boottime_ns = (time.boottime_ns + late).saturating_sub(early);
    }
    Ok((data.clock, time, paired, width))
}

impl ClockState {
    /// Reads the clocks. Last of all: what is told by it goes on while the rest is saved.
    pub fn save(vm: &VmFd, host_tsc_khz: u32) -> Result<Self, ClockError> {
        let boot_id = boot_id()?;
        let (clock_ns, time, paired, _) = read_kvmclock(vm, host_tsc_khz)?;
        Ok(Self {
            clock_ns,
            host_tsc: time.tsc,
            paired,
            boottime_ns: time.boottime_ns,
            realtime_ns: time.realtime_ns,
            host_tsc_khz,
            boot_id,
        })
    }
}

impl ClockState {
    /// Whether the host was reset since, and did not only go into another kernel: then memory that is not persistent holds what it
    /// holds. A reset begins the TSC anew; that it counts more again by now shows by the wall clock, which a kexec reads
    /// anew and others may set.
    pub fn host_was_reset(&self) -> Result<bool, ClockError> {
        Ok(self.boot_id != boot_id()? && self.was_reset_by(HostTime::now()?))
    }

    /// How many ns have passed since, by one of the host's clocks; none by one that went backward.
    fn since(&self, now: HostTime, by: Basis) -> u64 {
        match by {
            Basis::HostTsc => cycles_to_ns(now.tsc.saturating_sub(self.host_tsc), self.host_tsc_khz),
            Basis::Boottime => now.boottime_ns.saturating_sub(self.boottime_ns),
            Basis::WallClock => now.realtime_ns.saturating_sub(self.realtime_ns),
        }
    }

    /// How long the guest has stood that this was saved of.
    pub fn stood(&self) -> Result<Stood, ClockError> {
        let (now, same_boot) = (HostTime::now()?, self.boot_id == boot_id()?);
        let (by, _) = self.basis(now, same_boot);
        let up_ns = (!same_boot).then_some(now.boottime_ns);
        Ok(Stood { ns: self.since(now, by), by, up_ns })
    }

    /// What tells the time since, and whether the host's TSC went on.
    fn basis(&self, now: HostTime, same_boot: bool) -> (Basis, bool) {
        let other = self.since(now, if same_boot { Basis::Boottime } else { Basis::WallClock });
        let by_tsc = self.since(now, Basis::HostTsc);
        let apart = by_tsc.abs_diff(other);
        // Two readings of a clock are within 10 us, and NTP slews it by 500 ppm at most; a calibration of the TSC may be off by 1 % without it being another
        // count; over kexec the wall clock is read anew, in whole seconds.
        let slack_ns = if same_boot { 1_000_000 } else { 3_000_000_000 };
        let went_on = now.tsc >= self.host_tsc && apart <= slack_ns + other / 100;
        let exact = if same_boot { self.paired && apart <= 10_000 + other / 1_600 } else { true };
        let basis = match (went_on && exact, same_boot) {
            (true, _) => Basis::HostTsc,
            (false, true) => Basis::Boottime,
            (false, false) => Basis::WallClock,
        };
        (basis, went_on)
    }

    fn was_reset_by(&self, now: HostTime) -> bool {
        const SET_BY_NS: u64 = 60_000_000_000;
        let (wall, by_tsc) = (self.since(now, Basis::WallClock), self.since(now, Basis::HostTsc));
        // A TSC's rate is known to some hundred ppm.
        now.tsc < self.host_tsc || by_tsc.abs_diff(wall) > SET_BY_NS + wall / 2000
    }
}

/// How long a guest has stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stood {
    /// Nanoseconds since its clock was saved.
    pub ns: u64,
    /// What tells them.
    pub by: Basis,
    /// Nanoseconds for which the host's kernel has been up, if it is another than the one under which the guest was saved.
    pub up_ns: Option<u64>,
}

/// What tells how much time has passed since the save.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Basis {
    /// The host's TSC.
    HostTsc,
    /// `CLOCK_BOOTTIME`: the same boot.
    Boottime,
    /// `CLOCK_REALTIME`: another boot, whose TSC began anew.
    WallClock,
}

/// How a guest's time goes on after a load.
#[derive(Debug, Clone)]
pub struct Resumption {
    saved: ClockState,
    basis: Basis,
    guest_khz: u32,
    host_khz: u32,
    tsc_shift: u64,
}

impl Resumption {
    /// Decides how the guest's time goes on here. Before the vCPUs are loaded.
    ///
    /// `guest_khz` is the rate of the guest's TSC, `host_khz` that of this host's, as KVM takes it.
    pub fn new(saved: &ClockState, guest_khz: u32, host_khz: u32) -> Result<Self, ClockError> {
        if saved.host_tsc_khz == 0 {
            return Err(ClockError::Rate);
        }
        let same_boot = saved.boot_id == boot_id()?;
        Ok(Self::decide(saved.clone(), HostTime::now()?, same_boot, guest_khz, host_khz))
    }

    fn decide(saved: ClockState, now: HostTime, same_boot: bool, guest_khz: u32, host_khz: u32) -> Self {
        let (basis, went_on) = saved.basis(now, same_boot);
        let mut resumption = Self { saved, basis, guest_khz, host_khz, tsc_shift: 0 };
        let then = scale(resumption.saved.host_tsc, guest_khz, resumption.saved.host_tsc_khz);
        let same_scale = then == scale(resumption.saved.host_tsc, guest_khz, host_khz);
        if !(went_on && same_scale) {
            let due = then.wrapping_add(ns_to_cycles(resumption.elapsed_ns(now), guest_khz));
            resumption.tsc_shift = due.wrapping_sub(scale(now.tsc, guest_khz, host_khz));
        }
        resumption
    }

    /// What tells how much time has passed.
    pub fn basis(&self) -> Basis {
        self.basis
    }

    fn elapsed_ns(&self, now: HostTime) -> u64 {
        self.saved.since(now, self.basis)
    }

    /// For how long the guest has stood, by which its clocks go on.
    pub fn stood(&self) -> Result<Duration, ClockError> {
        Ok(Duration::from_nanos(self.elapsed_ns(HostTime::now()?)))
    }

    /// What kvmclock must show at an instant.
    fn due(&self, now: HostTime) -> u64 {
        self.saved.clock_ns.saturating_add(self.elapsed_ns(now))
    }

    /// A vCPU's TSC offset on this host, from the saved one.
    pub fn tsc_offset(&self, saved: u64) -> u64 {
        saved.wrapping_add(self.tsc_shift)
    }

    /// What a vCPU's TSC must show now.
    pub fn guest_tsc_now(&self, saved: Tsc) -> u64 {
        self.guest_tsc(saved, host_tsc())
    }

    fn guest_tsc(&self, saved: Tsc, host_tsc: u64) -> u64 {
        let offset = match saved {
            Tsc::Offset(offset) => offset,
            Tsc::Counters { guest, host } => {
                guest.wrapping_sub(scale(host, self.guest_khz, self.saved.host_tsc_khz))
            }
        };
        scale(host_tsc, self.guest_khz, self.host_khz).wrapping_add(self.tsc_offset(offset))
    }

    /// Sets kvmclock to what it must show, and returns by how many ns it is off after that (at most a few thousand, unless
    /// the host never lets this thread run that long at a stretch). After the vCPUs and the interrupt chips.
    pub fn load_clock(&self, vm: &VmFd) -> Result<i64, ClockError> {
        let (mut lead, mut off) = (0i64, 0i64);
        for _ in 0..SETTINGS {
            let due = self.due(HostTime::now()?);
            let clock = due.saturating_add_signed(lead).max(self.saved.clock_ns);
            vm.set_clock(&kvm_clock_data { clock, ..Default::default() })
                .map_err(|source| ClockError::Ioctl { ioctl: "KVM_SET_CLOCK", source })?;
            let (shown, at, _, within) = read_kvmclock(vm, self.host_khz)?;
            off = shown.wrapping_sub(self.due(at)) as i64;
            if off.unsigned_abs() <= CLOSE_NS.max(within / 2) {
                break;
            }
            lead = lead.saturating_sub(off);
        }
        Ok(off)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KHZ: u32 = 2_300_000;
    const S: u64 = 1_000_000_000;

    fn saved() -> ClockState {
        ClockState {
            clock_ns: 5_000 * S,
            host_tsc: ns_to_cycles(90_000 * S, KHZ),
            paired: true,
            boottime_ns: 90_000 * S,
            realtime_ns: 1_800_000_000 * S,
            host_tsc_khz: KHZ,
            boot_id: [1; 16],
        }
    }

    fn later(ns: u64) -> HostTime {
        let saved = saved();
        HostTime {
            tsc: saved.host_tsc + ns_to_cycles(ns, KHZ),
            boottime_ns: saved.boottime_ns + ns,
            realtime_ns: saved.realtime_ns + ns,
        }
    }

    fn decide(now: HostTime, same_boot: bool) -> Resumption {
        Resumption::decide(saved(), now, same_boot, KHZ, KHZ)
    }

    #[test]
    fn on_the_same_boot_the_tsc_tells_the_time_and_the_offset_is_kept() {
        let mut now = later(3_000_000);
        now.realtime_ns = 0; // the wall clock was set back: nobody cares
        let resumption = decide(now, true);
        assert_eq!((resumption.basis, resumption.tsc_shift), (Basis::HostTsc, 0));
        assert_eq!(resumption.due(now), saved().clock_ns + 3_000_000);
    }

    #[test]
    fn without_kvms_pair_of_clock_and_tsc_boottime_tells_the_time() {
        let now = later(3_000_000);
        let unpaired = ClockState { paired: false, ..saved() };
        let resumption = Resumption::decide(unpaired, now, true, KHZ, KHZ);
        assert_eq!((resumption.basis, resumption.tsc_shift), (Basis::Boottime, 0));
    }

    #[test]
    fn a_badly_calibrated_tsc_does_not_tell_the_time_but_keeps_its_offset() {
        let mut now = later(10 * S);
        now.tsc += ns_to_cycles(10 * S, KHZ) / 400;
        let resumption = decide(now, true);
        assert_eq!((resumption.basis, resumption.tsc_shift), (Basis::Boottime, 0));
    }

    #[test]
    fn over_kexec_the_tsc_tells_the_time_though_the_wall_clock_lost_a_second() {
        let mut now = later(8 * S);
        now.boottime_ns = 2 * S;
        now.realtime_ns -= S;
        let resumption = decide(now, false);
        assert_eq!((resumption.basis, resumption.tsc_shift), (Basis::HostTsc, 0));
        assert_eq!(resumption.due(now), saved().clock_ns + 8 * S);
    }

    #[test]
    fn a_reset_is_told_from_a_kexec_by_the_tsc_and_the_wall_clock() {
        let reset = |now: HostTime| saved().was_reset_by(now);
        assert!(!reset(HostTime { boottime_ns: 2 * S, ..later(30 * S) }), "a kexec");
        assert!(
            !reset(HostTime { realtime_ns: saved().realtime_ns + 75 * S, ..later(30 * S) }),
            "a clock set by 45 s"
        );
        assert!(
            reset(HostTime { tsc: ns_to_cycles(20 * S, KHZ), ..later(60 * S) }),
            "its TSC is below the saved one"
        );
        // It had been up for 90,000 s, and is for longer now.
        let tsc = ns_to_cycles(100_000 * S, KHZ);
        assert!(reset(HostTime { tsc, ..later(101_000 * S) }), "it has been up for longer than before");
        assert!(
            reset(HostTime { tsc: ns_to_cycles(5 * 86_400 * S, KHZ), ..later(5 * 86_400 * S) }),
            "days later"
        );
    }

    #[test]
    fn over_a_reset_the_guests_tsc_counts_the_wall_clocks_time() {
        let now = HostTime { tsc: ns_to_cycles(30 * S, KHZ), boottime_ns: 20 * S, ..later(60 * S) };
        let resumption = decide(now, false);
        assert_eq!(resumption.basis, Basis::WallClock);
        assert_eq!(resumption.due(now), saved().clock_ns + 60 * S);
        let offset = 77u64.wrapping_sub(saved().host_tsc); // the guest's TSC was 77
        assert_eq!(resumption.guest_tsc(Tsc::Offset(offset), now.tsc), 77 + ns_to_cycles(60 * S, KHZ));
    }

    #[test]
    fn a_guests_rate_is_kept_on_a_host_of_another_rate() {
        let (guest_khz, host_khz) = (KHZ, 3_000_000);
        let now = HostTime { tsc: ns_to_cycles(30 * S, host_khz), boottime_ns: 20 * S, ..later(60 * S) };
        let resumption = Resumption::decide(saved(), now, false, guest_khz, host_khz);
        let guest = |at| resumption.guest_tsc(Tsc::Offset(0), at);
        assert_eq!(guest(now.tsc), saved().host_tsc + ns_to_cycles(60 * S, guest_khz));
        assert_eq!(guest(now.tsc + 3_000_000), guest(now.tsc) + 2_300_000);
    }

    proptest! {
        #[test]
        fn no_clock_steps_back_whatever_the_host_shows(
            tsc in 0u64..1 << 50, boottime_ns in 0u64..1 << 60, realtime_ns in 0u64..1 << 62, same_boot: bool, paired: bool,
            host_khz in 1_000u32..6_000_000, passed in 0u64..1_000_000,
        ) {
            let now = HostTime { tsc, boottime_ns, realtime_ns };
            let saved = ClockState { paired, ..saved() };
            let resumption = Resumption::decide(saved.clone(), now, same_boot, KHZ, host_khz);
            prop_assert!(resumption.due(now) >= saved.clock_ns);
            let then = HostTime {
                tsc: now.tsc + passed, boottime_ns: now.boottime_ns + passed, realtime_ns: now.realtime_ns + passed,
            };
            prop_assert!(resumption.due(then) >= resumption.due(now));
            // A guest whose TSC was 0 at the save.
            let offset = Tsc::Offset(0u64.wrapping_sub(saved.host_tsc));
            prop_assert!(resumption.guest_tsc(offset, now.tsc) < 1 << 63, "it went below 0");
            prop_assert!(resumption.guest_tsc(offset, then.tsc) >= resumption.guest_tsc(offset, now.tsc));
        }

        #[test]
        fn every_vcpu_gets_the_same_shift(offsets: [u64; 4], tsc in 0u64..1 << 60) {
            let now = HostTime { tsc, boottime_ns: 0, realtime_ns: 0 };
            let resumption = decide(now, false);
            for pair in offsets.windows(2) {
                prop_assert_eq!(
                    resumption.tsc_offset(pair[1]).wrapping_sub(resumption.tsc_offset(pair[0])),
                    pair[1].wrapping_sub(pair[0])
                );
            }
        }
    }
}
