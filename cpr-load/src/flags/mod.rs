//! The command line, checked before anything happens.
//!
//! `boot`, `early` and `incoming` hold the flags of their verbs and what they come to.

mod boot;
mod early;
mod incoming;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use vmm_core::cpr::liveupdate::keeper::Numbers;

pub use self::boot::{Boot, Start};
pub use self::early::Early;
pub use self::incoming::{Check, Inspect, Resume};

/// What is to be done.
#[derive(Debug)]
pub struct Invocation {
    /// What is logged.
    pub log: EnvFilter,
    /// What is to be done.
    pub action: Action,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Boot a guest cold.
    Boot(Box<Boot>),
    /// Let a saved guest go on, or boot it.
    Start(Box<Start>),
    /// Let saved guests go on before their host's root file system is there.
    Early(Early),
    /// Take a guest over.
    Resume(Resume),
    /// Say whether a file could be loaded here.
    Check(Check),
    /// Show what a file holds.
    Inspect(Inspect),
    /// Keep a saved guest.
    Keep(String, Numbers),
}

#[derive(Parser)]
#[command(name = "cpr-load", version, about = "The process that owns a guest: boots it cold, or takes it over", after_help = AFTER_HELP, max_term_width = 110)]
struct Cli {
    /// What is logged to standard error (error, warn, info, debug, trace, or a tracing filter)
    #[arg(long, global = true, env = "CPR_LOG", default_value = "info", value_name = "LEVEL")]
    log: String,
    #[command(subcommand)]
    verb: Verb,
}

const AFTER_HELP: &str = "\
Examples:
  cpr-load boot --name web --cpus 2 --memory size=1G --kernel vmlinuz --initrd initrd --cmdline console=ttyS0 --serial stdio
  cpr-load boot --config /etc/cpr/web.toml
  cpr-load start --config /etc/cpr/web.toml --saved dir:/var/lib/cpr
  cpr-load early --outlive-root
  cpr-load resume --from unix:/run/cpr/web-next
  cpr-load resume --from file:/var/lib/cpr/web.state --set memory.path=/dev/dax1.0
  cpr-load resume --from luo:web
  cpr-load check --from file:/var/lib/cpr/web.state
  cpr-load inspect /var/lib/cpr/web.state --json

The guest's monitor speaks QMP at NAME.sock in $XDG_RUNTIME_DIR/cpr or /run/cpr; cpr-save takes that name.
SIGTERM presses the guest's power button; a second one ends the process.

Exit codes:
  0  the guest powered off, was handed over, or was told to quit; check: it can be loaded
  1  failed; a guest that was on its way here is still where it was; early: a guest that waits was not resumed
  2  usage
  3  check: it cannot be loaded here; every reason is listed
  4  the guest was lost: it ran here and cannot go on";

#[derive(Subcommand)]
enum Verb {
    /// Boot a guest cold
    #[command(
        after_help = "Examples:\n  cpr-load boot --config /etc/cpr/web.toml\n  cpr-load boot --name web --memory size=1G,backing=file,path=/dev/shm/web --kernel vmlinuz"
    )]
    Boot(Box<boot::Flags>),
    /// Let a guest go on that was saved and waits, or boot it where none does: what a unit starts
    #[command(after_help = "Example:\n  cpr-load start --config /etc/cpr/web.toml --saved dir:/var/lib/cpr")]
    Start(Box<boot::StartFlags>),
    /// Let saved guests go on, each in a process of its own that `start` takes it from: what an initial RAM disk starts
    #[command(after_help = early::AFTER_HELP)]
    Early(early::Flags),
    /// Take over a guest from another process, or from where it was saved to
    #[command(
        after_help = "Examples:\n  cpr-load resume --from unix:/run/cpr/web-next\n  cpr-load resume --from file:/var/lib/cpr/web.state --set memory.path=/dev/dax1.0"
    )]
    Resume(incoming::ResumeFlags),
    /// Say whether this host and this build can load a saved guest, and what is in the way
    #[command(after_help = "Example:\n  cpr-load check --from file:/var/lib/cpr/web.state --json")]
    Check(incoming::CheckFlags),
    /// Show what a file holds; also of one that this build cannot load
    #[command(after_help = "Example:\n  cpr-load inspect /var/lib/cpr/web.state --json")]
    Inspect(incoming::InspectFlags),
    /// Keep a saved guest: what cpr-load starts by itself
    #[command(hide = true)]
    Keep { guest: String, numbers: String },
}

impl Invocation {
    /// Reads the process's command line. What clap refuses is said and ends the process with 2; what only shows when the
    /// values are put together is returned as the error, and is usage as well.
    pub fn from_command_line() -> anyhow::Result<Self> {
        Self::from_cli(Cli::parse())
    }

    fn from_cli(cli: Cli) -> anyhow::Result<Self> {
        let log =
            EnvFilter::try_new(&cli.log).map_err(|error| anyhow::anyhow!("--log {}: {error}", cli.log))?;
        let action = match cli.verb {
            Verb::Boot(flags) => Action::Boot(Box::new(flags.check()?)),
            Verb::Start(flags) => Action::Start(Box::new(flags.check()?)),
            Verb::Early(flags) => Action::Early(flags.check()?),
            Verb::Resume(flags) => Action::Resume(flags.check()?),
            Verb::Check(flags) => Action::Check(flags.check()?),
            Verb::Inspect(flags) => Action::Inspect(flags.check()?),
            Verb::Keep { guest, numbers } => {
                let numbers = Numbers::parse(&numbers);
                Action::Keep(guest, numbers.ok_or_else(|| anyhow::anyhow!("keep: expected SOCKET,LIFELINE"))?)
            }
        };
        Ok(Self { log, action })
    }
}

#[cfg(test)]
mod tests;
