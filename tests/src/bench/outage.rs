//! Our own part of the outage when a host gets its next kernel: all guests saved by one command, and all loaded at once.
//!
//! The guests are paused, so that it is not their own work that is measured on few processors; their RAM stays where it is, and their
//! state files are on a disk.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::stats::{median, ms};
use crate::guests::{Guest, Mode};
use crate::harness::host::Host;
use crate::harness::vm::{Spec, Vm};

/// What is measured.
#[derive(clap::Args)]
pub struct Options {
    /// How many rounds, each of a save and a load
    #[arg(short = 'n', long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    count: u32,
    /// How many guests, one after the other
    #[arg(long, default_value = "1,4,16", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=256))]
    guests: Vec<u16>,
    /// Where the state files go
    #[arg(long, default_value = "/var/tmp", value_name = "DIRECTORY")]
    to: std::path::PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// One round: how long the save took, and the load.
type Round = [Duration; 2];

/// The rounds of so many guests.
struct Row {
    guests: u16,
    rounds: Vec<Round>,
}

/// Saves and loads guests, and prints how long that took.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let kept = tempfile::tempdir_in(&options.to).context("making a directory for the state files")?;
    let rows = options.guests.iter().map(|guests| measure(*guests, options.count, kept.path()));
    let rows = rows.collect::<anyhow::Result<Vec<_>>>()?;
    if options.json {
        let rows: Vec<_> = rows.iter().map(Row::to_json).collect();
        println!("{}", json!({"count": options.count, "rows": rows}));
        return Ok(());
    }
    println!(
        "all guests saved by one command, and loaded at once, in ms: medians, and from least to most ({} rounds)\n",
        options.count
    );
    println!(
        "{:>6} {:>26} {:>26} {:>14} {:>18}",
        "guests", "save", "load", "both, a guest", "to that of one"
    );
    let each = |row: &Row| ms(row.both()) / f64::from(row.guests);
    let one = rows.iter().find(|row| row.guests == 1).map(each);
    for row in &rows {
        let [save, load] = [0, 1].map(|part| {
            let [least, most] = row.spread(part).map(ms);
            format!("{:.1} ({least:.1}-{most:.1})", ms(row.median(part)))
        });
        let ratio = one.map_or("-".into(), |one| format!("{:.2}", each(row) / one));
        println!("{:>6} {save:>26} {load:>26} {:>14.1} {ratio:>18}", row.guests, each(row));
    }
    Ok(())
}

fn measure(guests: u16, rounds: u32, directory: &Path) -> anyhow::Result<Row> {
    let host = Host::new()?;
    let boot = |_| Vm::boot(&host, Spec::new(Guest::patterns(Mode::Long), 1));
    let mut vms = (0..guests).map(boot).collect::<anyhow::Result<Vec<_>>>()?;
    for vm in &vms {
        vm.save("stop", &[])?.must_be(0)?;
    }
    let rounds = (0..rounds).map(|_| round(&host, &mut vms, directory));
    let rounds = rounds.collect::<anyhow::Result<Vec<_>>>().with_context(|| format!("{guests} guests"))?;
    Ok(Row { guests, rounds })
}

fn round(host: &Host, vms: &mut [Vm<'_>], directory: &Path) -> anyhow::Result<Round> {
    let began = Instant::now();
    let saved =
        host.save(&["reboot", "--all", "--to", &format!("dir:{}", directory.display())])?.must_be(0)?;
    let save = began.elapsed();
    let told = saved.facts["guests"].as_array().map_or(0, Vec::len);
    ensure!(told == vms.len(), "{told} of {} guests were saved: {}", vms.len(), saved.facts);
    vms.iter_mut().try_for_each(Vm::ended)?;
    let began = Instant::now();
    for vm in vms.iter_mut() {
        let file = directory.join(format!("{}.state", vm.name));
        vm.process = host.load(["resume", "--from", &format!("file:{}", file.display())])?;
    }
    vms.iter().try_for_each(|vm| vm.becomes("paused"))?;
    Ok([save, began.elapsed()])
}

impl Row {
    fn median(&self, part: usize) -> Duration {
        median(self.rounds.iter().map(|round| round[part]))
    }

    fn both(&self) -> Duration {
        median(self.rounds.iter().map(|round| round[0] + round[1]))
    }

    /// The least and the most.
    fn spread(&self, part: usize) -> [Duration; 2] {
        let all = || self.rounds.iter().map(|round| round[part]);
        [all().min(), all().max()].map(Option::unwrap_or_default)
    }

    fn to_json(&self) -> Value {
        let part = |part| {
            let [least, most] = self.spread(part).map(ms);
            json!({"median-ms": ms(self.median(part)), "min-ms": least, "max-ms": most})
        };
        json!({"guests": self.guests, "save": part(0), "load": part(1), "both-median-ms": ms(self.both())})
    }
}
