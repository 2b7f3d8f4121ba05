//! Downtime, measured from outside, by the guest's heartbeat in its RAM ([`crate::harness::watch`]).
//!
//! 1. Every contender runs the same guest, and is measured by the same watcher on the same clock.
//! 2. Contenders take turns, so that what else the machine does falls on all of them; who does not have its turn is paused.
//! 3. Two figures are given. The *stop* is the longest stand-still at the time of the `STOP` event, which both monitors
//!    send. The *longest* is that of the whole handover, so that it holds whatever the machine makes the guest wait
//!    while the target is being prepared and the source is torn down: where processors are few, that is not little.
//! 4. The noise floor is measured in every turn: the longest stand-still of the same guest just before, left in peace.
//!
//! All of it runs at a raised priority where that is allowed, so that other work on the machine is not measured.
//!
//! What of an outage is ours when a host's guests are saved and loaded again is in `outage`.
//!
//! What a guest gets out of its disks and networks is another thing, in `io`.

mod contenders;
mod devices;
mod io;
mod outage;
mod stats;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand};
use serde_json::{Value, json};
use vmm_core::cpr::Mode;

use self::contenders::{Contender, Ours, Theirs, watch};
use self::stats::{Results, Sample};
use crate::harness::host::Host;
use crate::harness::qemu;
use crate::lab::init;

#[derive(Parser)]
#[command(name = "bench", about = "Measures handovers on /dev/kvm, and disks and networks in the lab")]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The longest time that a guest stands still in a handover, in each mode, for ours and for QEMU
    Downtime(Downtime),
    /// What each idle device adds to the downtime of a transfer
    Devices(Devices),
    /// How long our own part takes when several guests are saved, and loaded again
    Outage(outage::Options),
    /// What a Linux guest gets out of its disks and networks, on ours and on QEMU
    Io(io::Options),
    /// Measures disks and networks; only in the lab's host
    #[command(hide = true)]
    Inside,
}

#[derive(clap::Args)]
struct Devices {
    /// How many transfers
    #[arg(short = 'n', long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    count: u32,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Downtime {
    /// How often each is measured
    #[arg(short = 'n', long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    count: u32,
    /// The size of the guest with little RAM, all of it touched
    #[arg(long, default_value_t = 256, value_name = "MIB", value_parser = clap::value_parser!(u64).range(32..))]
    small: u64,
    /// The size of the guest with much RAM, all of it touched
    #[arg(long, default_value_t = 8192, value_name = "MIB", value_parser = clap::value_parser!(u64).range(32..))]
    big: u64,
    /// Leave QEMU out
    #[arg(long)]
    without_qemu: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Measures what the command line asks for.
pub fn main() -> anyhow::Result<()> {
    if std::process::id() == 1 {
        init::run()?;
    }
    match Cli::parse().what {
        What::Downtime(options) => {
            raise();
            downtime(&options)
        }
        What::Devices(options) => {
            raise();
            devices::run(options.count, options.json)
        }
        What::Outage(options) => {
            raise();
            outage::run(&options)
        }
        What::Io(options) => io::run(&options),
        What::Inside => io::inside(),
    }
}

/// Raises this process's priority, so that other work on the machine is not measured; not for what takes minutes.
fn raise() {
    // SAFETY: a request about this process; refused, it changes nothing.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -10) };
}

fn downtime(options: &Downtime) -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut notes = Vec::new();
    let mut contenders = enter(&host, options, &mut notes)?;
    let mut results: Vec<Results> = contenders.iter().map(|c| Results::new(c.label())).collect();
    for turn in 1..=options.count {
        for (contender, results) in contenders.iter_mut().zip(&mut results) {
            if !options.json {
                eprintln!("turn {turn} of {}: {}", options.count, results.label);
            }
            let sample = measure(contender.as_mut()).with_context(|| results.label.to_string())?;
            results.samples.push(sample);
        }
    }
    let ratios = ratios(&results, options);
    if options.json {
        let results: Vec<Value> = results.iter().map(Results::to_json).collect();
        println!("{}", json!({"count": options.count, "results": results, "ratios": ratios, "notes": notes}));
        return Ok(());
    }
    println!(
        "downtime in ms, seen from outside ({} handovers each); ratios are of the stops' medians\n",
        options.count
    );
    println!("{}", Results::header());
    for results in &results {
        println!("{results}");
    }
    println!();
    for (what, ratio) in &ratios {
        println!("{what}: {ratio:.2}");
    }
    for note in &notes {
        println!("note: {note}");
    }
    Ok(())
}

/// Boots the guests that this machine has room for; says which are left out.
fn enter<'h>(
    host: &'h Host,
    options: &Downtime,
    notes: &mut Vec<String>,
) -> anyhow::Result<Vec<Box<dyn Contender + 'h>>> {
    let mut contenders: Vec<Box<dyn Contender>> = Vec::new();
    let small = options.small;
    for mode in Mode::ALL {
        contenders.push(Box::new(Ours::boot(host, mode, small)?));
    }
    let needed = options.big * 9 / 8;
    let available = available_mib()?;
    if available >= needed {
        contenders.push(Box::new(Ours::boot(host, Mode::CprTransfer, options.big)?));
    } else {
        notes.push(format!("no guest with {} MiB: {available} MiB are free, {needed} needed", options.big));
    }
    match (options.without_qemu, qemu::version()) {
        (true, _) => {}
        (false, Ok(version)) if version >= (10, 0) => {
            contenders.push(Box::new(Theirs::boot(host, Mode::CprTransfer, small)?));
            if version >= (10, 2) {
                contenders.push(Box::new(Theirs::boot(host, Mode::CprExec, small)?));
            } else {
                notes.push(format!("no QEMU cpr-exec: it needs 10.2, this is {}.{}", version.0, version.1));
            }
        }
        (false, Ok((major, minor))) => {
            notes.push(format!("no QEMU: cpr-transfer needs 10.0, this is {major}.{minor}"));
        }
        (false, Err(error)) => notes.push(format!("no QEMU: {error:#}")),
    }
    Ok(contenders)
}

/// One turn: the guest runs alone, first left in peace, then handed over.
fn measure(contender: &mut dyn Contender) -> anyhow::Result<Sample> {
    contender.go()?;
    std::thread::sleep(Duration::from_millis(100));
    let noise = watch(contender, |_| {
        std::thread::sleep(Duration::from_millis(300));
        Ok(())
    })?;
    contender.prepare()?;
    let mut events = contender.monitor()?;
    std::thread::sleep(Duration::from_millis(100));
    let seen = watch(contender, |contender| contender.hand_over())?;
    let event = events.wait_event("STOP", Duration::from_secs(5)).context("the handover's STOP event")?;
    let stop = monotonic(event.at_us)?;
    let stop = seen.longest_within(stop.checked_sub(AROUND).unwrap_or(stop), stop + AROUND);
    let reported = contender.reported();
    contender.pause()?;
    Ok(Sample { stop, longest: seen.longest(), noise: noise.longest(), reported })
}

/// How far from the stand-still a `STOP` event may be: some send it at its beginning, some at its end.
const AROUND: Duration = Duration::from_millis(10);

/// A time on the wall clock, in microseconds since 1970, on the clock that gaps are measured on.
fn monotonic(wall_us: u64) -> anyhow::Result<Instant> {
    let (wall, now) = (SystemTime::now(), Instant::now());
    let ago = wall.duration_since(UNIX_EPOCH + Duration::from_micros(wall_us)).unwrap_or_default();
    now.checked_sub(ago).context("an event is from before this machine's start")
}

fn ratios(results: &[Results], options: &Downtime) -> Vec<(String, f64)> {
    let median = |system, mode, mib| {
        let of = |r: &&Results| (r.label.system, r.label.mode, r.label.memory_mib) == (system, mode, mib);
        results.iter().find(of).map(Results::median)
    };
    let ratio = |a: Option<Duration>, b: Option<Duration>| Some(a?.as_secs_f64() / b?.as_secs_f64());
    let mut ratios = Vec::new();
    for mode in Mode::ALL {
        let (ours, qemu) = (median("ours", mode, options.small), median("QEMU", mode, options.small));
        ratios.extend(ratio(qemu, ours).map(|r| (format!("QEMU to ours, {mode}"), r)));
    }
    let of = |mib| median("ours", Mode::CprTransfer, mib);
    let more = ratio(of(options.big), of(options.small));
    ratios.extend(more.map(|r| (format!("{} MiB to {} MiB, cpr-transfer", options.big, options.small), r)));
    ratios
}

fn available_mib() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    ensure!(kib.is_some(), "/proc/meminfo has no MemAvailable");
    Ok(kib.unwrap_or_default() / 1024)
}
