//! Disks and networks: what a guest of ours gets out of them, and what the same guest gets on QEMU.
//!
//! 1. Both run the same kernel, guest program and kind of RAM, on the same disks and taps of their own, at the same time;
//!    the guest measures itself ([`guest_init::measure`]), who does not have its turn is idle.
//! 2. They take turns figure by figure, and who begins changes with each round, so that what else the machine does falls
//!    on both ([`turns`]). A figure's ratio is taken round by round: its spread is the noise.
//! 3. The lab's host is where this works everywhere ([`lab`]); a machine whose `/dev/kvm` runs Linux is faster and
//!    closer to the truth ([`here`]). Either way the same code runs ([`turns`]), only the places differ ([`place`]).
//!
//! [`plan`] is what is measured, [`contenders`] who, [`servers`] the host's end of the networks, [`program`] how QEMU gets
//! into the lab, [`table`] what comes out.

mod contenders;
mod here;
mod lab;
mod place;
mod plan;
mod program;
mod servers;
mod table;
mod turns;

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use self::plan::Part;

pub use self::lab::inside;

/// Where it is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum On {
    /// In the lab's host, under TCG
    Lab,
    /// On this machine's /dev/kvm; Linux must boot there
    Kvm,
}

/// What the command line asks for.
#[derive(Args)]
pub struct Options {
    /// How often each figure is measured; an even number, so that each begins as often as the other
    #[arg(short = 'n', long = "rounds", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// How long each is measured
    #[arg(long, default_value_t = 500, value_name = "MS", value_parser = clap::value_parser!(u64).range(10..=60_000))]
    time: u64,
    /// Where
    #[arg(long, value_enum, default_value_t = On::Lab)]
    on: On,
    /// Only this part
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Give each of QEMU's disks an I/O thread
    #[arg(long)]
    iothread: bool,
    /// Instead of QEMU, compare with this cpr-load: one of another state of the code, or the same for the noise
    #[arg(long, value_name = "CPR-LOAD")]
    against: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Measures, and prints what came out.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let report = match options.on {
        On::Lab => lab::run(options)?,
        On::Kvm => here::run(options)?,
    };
    if options.json {
        println!("{}", report.to_json());
    } else {
        print!("{report}");
    }
    Ok(())
}
