//! Runs lab scenarios: `scripts/lab` builds what it needs and starts it. In the lab's host it is the first process.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use cpr_tests::lab::judge::{self, Verdict};
use cpr_tests::lab::outage::OutageReport;
use cpr_tests::lab::peer::PeerReport;
use cpr_tests::lab::report::Report;
use cpr_tests::lab::scenario::Scenario;
use cpr_tests::lab::{alone, host, init, inside, operator};
use nix::fcntl::{Flock, FlockArg};

/// The exit code where another run may pass: EX_TEMPFAIL of sysexits.h.
const DOUBTFUL: u8 = 75;

/// Runs lab scenarios.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lists the scenarios.
    List,
    /// Runs scenarios, one after the other; prints verdict and figures last. Exit code 0: all passed; 75: of nothing that failed
    /// is it sure that it was not the lab's own machine, and another run may tell; 1: otherwise.
    Run {
        /// Their names.
        #[arg(required = true)]
        names: Vec<String>,
        /// As the tier `long` has them.
        #[arg(long)]
        long: bool,
        /// Where the console logs and figures of each are kept.
        #[arg(long, default_value = "target/lab")]
        out: PathBuf,
    },
    /// Takes the guest through the scenario's steps; only in the lab's host.
    #[command(hide = true)]
    Inside,
    /// Does what the operator of a host with a root does; only there.
    #[command(hide = true)]
    Operate,
}

fn main() -> Result<ExitCode> {
    if std::process::id() == 1 {
        init::run()?;
    }
    match Cli::parse().command {
        Command::List => list(),
        Command::Run { names, long, out } => {
            let verdicts: Vec<_> =
                names.iter().map(|name| run(name, long, &out.join(name))).collect::<Result<_>>()?;
            return Ok(if verdicts.iter().all(Verdict::is_passed) {
                ExitCode::SUCCESS
            } else if verdicts.iter().all(|verdict| verdict.is_passed() || verdict.is_doubtful()) {
                ExitCode::from(DOUBTFUL)
            } else {
                ExitCode::FAILURE
            });
        }
        Command::Inside => inside::run(),
        Command::Operate => operator::run(),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn list() -> Result<()> {
    for path in Scenario::paths()? {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        println!("{name:<20} {}", Scenario::read(&path)?.about);
    }
    Ok(())
}

/// Runs one scenario and prints its verdict.
fn run(name: &str, long: bool, directory: &Path) -> Result<Verdict> {
    let paths = Scenario::paths()?;
    let path = paths.iter().find(|path| path.file_stem().is_some_and(|stem| stem == name));
    let scenario =
        Scenario::read(path.with_context(|| format!("no scenario {name}: scripts/lab --list has them"))?)?;
    let scenario = if long { scenario.at_length() } else { scenario };
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    let opened = File::open(directory).with_context(|| format!("opening {}", directory.display()))?;
    // The images in it are made anew, and are a guest's until it ends.
    let _alone = Flock::lock(opened, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, error)| error)
        .with_context(|| format!("{} is another lab's, which runs this scenario now", directory.display()))?;
    let started = Instant::now();
    println!("lab: {name}: {}", scenario.about);
    let report = match &scenario.host {
        Some(machine) => host::run(&scenario, machine, directory),
        None => alone::run(&scenario, directory),
    };
    let report =
        report.unwrap_or_else(|error| Report { stopped_by: Some(format!("{error:#}")), ..Report::default() });
    fs::write(directory.join("report.json"), serde_json::to_string_pretty(&report)?)?;
    let verdict = judge::judge(&scenario, &report);
    figures(&report);
    println!("  kept: {}", directory.display());
    for failure in verdict.all() {
        println!("  FAILED: {failure}");
    }
    let word = match (verdict.is_passed(), verdict.is_doubtful()) {
        (true, _) => "PASSED",
        (false, true) => "FAILED, which may be the machine's doing,",
        (false, false) => "FAILED",
    };
    println!("lab: {name}: {word} in {:.0} s", started.elapsed().as_secs_f64());
    Ok(verdict)
}

/// What outages were made of, in seconds.
fn outages(outages: &[OutageReport]) {
    let seconds = |us: u64| us as f64 / 1e6;
    let Some(first) = outages.first() else { return };
    let names = first.phases.iter().map(|time| format!("{:>22}", time.phase));
    println!("  guests{}       save and load          share", names.collect::<String>());
    for outage in outages {
        let times = outage.phases.iter().map(|time| format!("{:>20.2} s", seconds(time.us)));
        println!(
            "  {:>6}{}{:>20.2} s{:>13.0} %",
            outage.guests,
            times.collect::<String>(),
            seconds(outage.own()),
            outage.own() as f64 / outage.whole() as f64 * 100.0
        );
    }
    for outage in outages {
        let [least, most] = outage.stood;
        println!("  {} guests: each stood for {least:.0} to {most:.0} ms by its own account", outage.guests);
        for (what, phases) in [("save", &outage.saves), ("load", &outage.loads)] {
            let times = phases.iter().map(|time| format!("{} {:.2}", time.phase, time.us as f64 / 1e3));
            println!("    steps of a {what}, medians in ms: {}", times.collect::<Vec<_>>().join(", "));
        }
    }
}

fn figures(report: &Report) {
    if !report.outage.is_empty() {
        outages(&report.outage);
        return;
    }
    if !report.operations.is_empty() {
        for made in &report.operations {
            println!("  {}: {} wrong", made.operation, made.wrong.len());
            made.said.iter().for_each(|line| println!("    {line}"));
        }
        return;
    }
    for step in &report.steps {
        let time = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"));
        println!(
            "  {:<16} downtime {:>8} ms  total {:>8} ms  longest gaps {} ms  timer late {:>8.1} ms  drift {:+.1} ms  descriptors {}",
            step.step,
            time(step.downtime),
            time(step.total),
            step.gaps.iter().map(|gap| format!("{gap:>7.1}")).collect::<Vec<_>>().join(" "),
            step.late,
            step.drift,
            step.descriptors.map_or_else(|| "-".to_owned(), |count| count.to_string()),
        );
    }
    for step in ["transfer", "exec", "reboot", "kexec"] {
        let phases = report.phases(step);
        if !phases.is_empty() {
            let times = phases.iter().map(|time| format!("{} {:.2}", time.phase, time.us as f64 / 1e3));
            println!("  steps of {step}, medians in ms: {}", times.collect::<Vec<_>>().join(", "));
        }
    }
    for (step, net) in report.steps.iter().filter_map(|step| Some((&step.step, step.net.as_ref()?))) {
        println!(
            "  net, {step}: {} answers to pings, {} lost, {} out of order, {} again, longest gap {:.1} ms; TCP {} messages, longest gap {:.1} ms",
            net.answers, net.lost, net.reordered, net.repeated, net.gap, net.messages, net.stream_gap
        );
    }
    for PeerReport { step, net } in &report.peer {
        println!(
            "  peer outside, {step}: {} answers to pings, longest gap {:.1} ms; TCP {} messages, longest gap {:.1} ms",
            net.answers, net.gap, net.messages, net.stream_gap
        );
    }
    for (step, vsock) in report.steps.iter().filter_map(|step| Some((&step.step, step.vsock.as_ref()?))) {
        println!(
            "  vsock, {step}: {} messages, longest gap {:.1} ms; {} connections ended, renewed within {:.1} ms{}",
            vsock.messages,
            vsock.gap,
            vsock.ended,
            vsock.renewal,
            vsock.how.as_ref().map(|how| format!(" ({how})")).unwrap_or_default()
        );
    }
    let (stream, pings) = (&report.stream, &report.pings);
    println!(
        "  serial: {} lines, {} lost, {} repeated, {} damaged, {} unread; pings: {} of {} answered",
        stream.lines, stream.lost, stream.repeated, stream.damaged, stream.unread, pings.answered, pings.sent
    );
    if let Some(status) = &report.status {
        println!(
            "  guest: {}, {}, memory passes {}, register passes {}, kernel messages of trouble {}",
            status.clocksource,
            status.clockevent,
            status.memory.passes,
            status.registers.passes,
            status.kernel_messages
        );
        for disk in &status.disks {
            println!(
                "  disk {}: {} writes, {} reads, {} flushes, {} errors",
                disk.disk, disk.writes, disk.reads, disk.syncs, disk.errors
            );
        }
        if !status.disks.is_empty() {
            let longest: Vec<_> = report.steps.iter().map(|step| format!("{:.0}", step.disk)).collect();
            println!("  longest requests to a disk in each step: {} ms", longest.join(" "));
        }
    }
    for message in &report.host_messages {
        println!("  host, {message}");
    }
    for back in &report.given_back {
        let (device, read) = (&back.device, back.read >> 20);
        println!(
            "  given back: {device}, {read} MiB of it read{}",
            back.wrong.as_deref().map(|what| format!(": {what}")).unwrap_or_default()
        );
    }
    if let Some(second) = &report.second {
        println!("  the second guest:");
        figures(second);
    }
}
