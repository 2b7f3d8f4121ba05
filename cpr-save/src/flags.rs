//! The command line, checked before anything happens.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use vmm_core::cpr::Mode;
use vmm_core::monitor::{Address, Channels, paths};

use crate::all::{All, Shelf};

/// What is to be done, to whom.
#[derive(Debug)]
pub struct Invocation {
    /// The guest's monitor socket.
    pub vm: PathBuf,
    /// JSON lines instead of text.
    pub json: bool,
    /// What is logged.
    pub log: EnvFilter,
    /// What is to be done.
    pub action: Action,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    Handover(Plan),
    Check(Plan),
    /// To the first place in whose way nothing stands.
    SaveBest(Plan, Shelf),
    CheckBest(Plan, Shelf),
    SaveAll(All),
    CheckAll(All),
    Status,
    Stop,
    Cont,
    Cancel,
    Quit,
}

/// How a handover is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub mode: Mode,
    /// Where to. Paths are absolute: the VMM has a working directory of its own.
    pub channels: Channels,
    /// What exec mode executes; empty: the binary now at the VMM's own path.
    pub exec_command: Vec<String>,
    /// Whether RAM that would not survive is copied into the file.
    pub copy_ram: bool,
    /// Whether what would not outlive a kexec is refused.
    pub kexec: bool,
    /// Whether the guest is suspended before, and how long it may take to sleep.
    pub suspend: Option<Duration>,
    /// The bound on the stopped part, in milliseconds; `None`: the VMM's own.
    pub downtime_limit: Option<u64>,
    /// The bound on everything before the stop.
    pub timeout: Duration,
    /// Whether the source stays when it has given the guest away.
    pub keep: bool,
}

#[derive(Parser)]
#[command(name = "cpr-save", version, about = "Hand a running guest over: to another process, to a new binary, or to a file", after_help = AFTER_HELP, max_term_width = 110)]
struct Cli {
    /// Print JSON lines, and last an object that says how it went
    #[arg(long, global = true)]
    json: bool,
    /// What is logged to standard error (error, warn, info, debug, trace, or a tracing filter)
    #[arg(long, global = true, env = "CPR_LOG", default_value = "warn", value_name = "LEVEL")]
    log: String,
    #[command(subcommand)]
    verb: Verb,
}

const AFTER_HELP: &str = "\
VM is a guest's name (its socket is NAME.sock in $XDG_RUNTIME_DIR/cpr or /run/cpr) or the path of a QMP socket.

Examples:
  cpr-save transfer web --to unix:/run/cpr/web-next
  cpr-save exec web
  cpr-save exec web -- /opt/cpr/bin/cpr-load
  cpr-save reboot web --to file:/var/lib/cpr/web.state
  cpr-save reboot --all --to dir:/var/lib/cpr
  cpr-save reboot --all --to luo:
  cpr-save reboot web --suspend --to luo:
  cpr-save check web --mode reboot --to file:/var/lib/cpr/web.state
  cpr-save status web --json
  cpr-save stop web
  cpr-save cont web
  cpr-save cancel web
  cpr-save quit web

Exit codes say where the guest is:
  0  done
  1  failed; the guest runs on in the source (--all: or was saved, as is said of each)
  2  usage
  3  refused before anything was touched; every blocker is listed
  4  the guest runs nowhere, or it is not known where";

#[derive(Subcommand)]
enum Verb {
    /// Hand the guest over to another process on this host, which listens on a UNIX socket
    #[command(
        after_help = "Example:\n  cpr-load resume --from unix:/run/cpr/web-next &\n  cpr-save transfer web --to unix:/run/cpr/web-next"
    )]
    Transfer {
        #[command(flatten)]
        vm: Vm,
        /// The socket on which the target listens
        #[arg(long, value_name = "unix:PATH", value_parser = unix)]
        to: Address,
        /// The socket for the state, where it is another one than that for descriptors (QEMU needs this)
        #[arg(long, value_name = "unix:PATH", value_parser = unix)]
        main: Option<Address>,
        #[command(flatten)]
        bounds: Bounds,
        /// Leave the source running, without the guest
        #[arg(long)]
        keep: bool,
    },
    /// Replace the VMM's binary in place: same process, same guest
    #[command(after_help = "Examples:\n  cpr-save exec web\n  cpr-save exec web -- /opt/cpr/bin/cpr-load")]
    Exec {
        #[command(flatten)]
        vm: Vm,
        /// A file for the state, which QEMU needs; cpr-load keeps it in memory
        #[arg(long, value_name = "file:PATH", value_parser = file)]
        to: Option<Address>,
        #[command(flatten)]
        bounds: Bounds,
        /// What to execute [default: the binary now at the VMM's own path]
        #[arg(last = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Save the guest to a file and end its process, so that the host can boot another kernel
    #[command(
        after_help = "Examples:\n  cpr-save reboot web --to file:/var/lib/cpr/web.state\n  cpr-save reboot --all --to dir:/var/lib/cpr"
    )]
    Reboot {
        #[command(flatten)]
        which: Which,
        /// The file, replaced as a whole when everything is in it; with --all the directory for files NAME.state; `luo:` is memory that
        /// the host's next kernel finds, and the RAM with it; `auto:` is that where it can be, else NAME.state in a directory
        #[arg(long, value_name = "file:PATH|dir:PATH|luo:|auto:PATH", value_parser = place)]
        to: Place,
        /// How many guests are saved at a time [default: as many as there are processors]
        #[arg(long, value_name = "COUNT", conflicts_with = "vm")]
        jobs: Option<NonZero<usize>>,
        /// Copy RAM into the file instead of leaving it in place; with --all only where it would not outlive a kexec
        #[arg(long)]
        copy_ram: bool,
        /// The host will go into another kernel: refuse RAM, and a file, that would end with this one
        #[arg(long)]
        kexec: bool,
        /// Have the guest's agent suspend it before, and wake it where it is loaded; it may take so many seconds to sleep [default: 30].
        /// A guest with assigned devices needs this, unless it sleeps
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "30", value_parser = clap::value_parser!(u64).range(1..=86_400))]
        suspend: Option<u64>,
        #[command(flatten)]
        bounds: Bounds,
        /// Leave the source running, without the guest
        #[arg(long)]
        keep: bool,
    },
    /// Say what stands in the way of a handover, without touching anything
    #[command(after_help = "Example:\n  cpr-save check web --mode reboot --to file:/var/lib/cpr/web.state")]
    Check {
        #[command(flatten)]
        which: Which,
        /// transfer, exec or reboot
        #[arg(long)]
        mode: Mode,
        /// Where the handover would go; with --all a directory
        #[arg(long, value_name = "unix:PATH|file:PATH|dir:PATH|luo:|auto:PATH", value_parser = place)]
        to: Option<Place>,
        /// Whether reboot mode would copy RAM into the file
        #[arg(long)]
        copy_ram: bool,
        /// Whether the host would go into another kernel meanwhile
        #[arg(long)]
        kexec: bool,
        /// Whether the guest would be suspended before
        #[arg(long)]
        suspend: bool,
        /// What exec mode would execute
        #[arg(last = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Say how the guest is and how its last handover went
    #[command(after_help = "Example:\n  cpr-save status web --json")]
    Status(Vm),
    /// Stop the guest's vCPUs
    #[command(after_help = "Example:\n  cpr-save stop web")]
    Stop(Vm),
    /// Let the guest's vCPUs go on
    #[command(after_help = "Example:\n  cpr-save cont web")]
    Cont(Vm),
    /// Cancel a handover under way; the guest stays where it is
    #[command(after_help = "Example:\n  cpr-save cancel web")]
    Cancel(Vm),
    /// End the guest's process, and with it the guest if it is still there
    #[command(after_help = "Example:\n  cpr-save quit web")]
    Quit(Vm),
}

#[derive(Args, Default)]
struct Vm {
    /// The guest's name, or the path of its monitor socket
    vm: String,
}

#[derive(Args)]
struct Which {
    /// The guest's name, or the path of its monitor socket
    #[arg(required_unless_present = "all")]
    vm: Option<String>,
    /// All guests whose sockets are in the runtime directory, or none where one of them cannot go; by reboot, to a directory
    #[arg(long, conflicts_with = "vm")]
    all: bool,
    /// A guest that is left alone; may be given several times
    #[arg(long, value_name = "VM", conflicts_with = "vm")]
    except: Vec<String>,
}

#[derive(Args)]
struct Bounds {
    /// The longest that the guest may stand still; past it the source takes the guest back
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    downtime_limit: Option<u64>,
    /// The longest that everything before that may take
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
}

impl Invocation {
    /// Reads the process's command line. On a usage error: says so and exits with 2.
    pub fn from_command_line() -> Self {
        Self::from_cli(Cli::parse()).unwrap_or_else(|error| error.exit())
    }

    fn from_cli(cli: Cli) -> Result<Self, clap::Error> {
        let log = EnvFilter::try_new(&cli.log).map_err(|error| {
            clap::Error::raw(clap::error::ErrorKind::InvalidValue, format!("--log {}: {error}\n", cli.log))
        })?;
        let (vm, action) = cli.verb.into_action()?;
        Ok(Self { vm: paths::resolve(&vm.vm), json: cli.json, log, action })
    }
}

impl Verb {
    fn into_action(self) -> Result<(Vm, Action), clap::Error> {
        Ok(match self {
            Self::Transfer { vm, to, main, bounds, keep } => {
                let main = main.unwrap_or_else(|| to.clone());
                let channels = Channels { main: Some(main), cpr: Some(to) };
                (vm, Action::Handover(Plan { keep, ..Plan::new(Mode::CprTransfer, channels, &bounds) }))
            }
            Self::Exec { vm, to, bounds, command } => {
                let channels = Channels { main: to, cpr: None };
                let plan = Plan { exec_command: command, ..Plan::new(Mode::CprExec, channels, &bounds) };
                (vm, Action::Handover(plan))
            }
            Self::Reboot {
                which: Which { vm, except, .. },
                to,
                jobs,
                copy_ram,
                kexec,
                suspend,
                bounds,
                keep,
            } => {
                let plan = Plan {
                    copy_ram,
                    kexec,
                    suspend: suspend.map(Duration::from_secs),
                    keep,
                    ..Plan::new(Mode::CprReboot, Channels::default(), &bounds)
                };
                match (vm, to) {
                    (_, Place::One(Address::LiveUpdate(_))) if copy_ram => {
                        return Err(usage("--copy-ram: with luo: the kernel keeps the RAM"));
                    }
                    (Some(vm), Place::One(to @ (Address::File(_) | Address::LiveUpdate(_)))) => {
                        let channels = Channels { main: Some(to), cpr: None };
                        (Vm { vm }, Action::Handover(Plan { channels, ..plan }))
                    }
                    (Some(vm), Place::Each(shelf @ Shelf::Best(_))) => {
                        (Vm { vm }, Action::SaveBest(plan, shelf))
                    }
                    (None, to) => match to.for_all() {
                        Some(shelf) => (Vm::default(), Action::SaveAll(All { plan, shelf, except, jobs })),
                        None => return Err(usage("--to: expected dir:PATH, auto:PATH or luo: with --all")),
                    },
                    (Some(_), _) => return Err(usage("--to: expected file:PATH, auto:PATH or luo:")),
                }
            }
            Self::Check { which: Which { vm, except, .. }, mode, to, copy_ram, kexec, suspend, command } => {
                if suspend && mode != Mode::CprReboot {
                    return Err(usage("--suspend: a guest is suspended for a reboot only"));
                }
                let bounds = Bounds { downtime_limit: None, timeout: 30 };
                let plan = Plan::new(mode, Channels::default(), &bounds);
                let suspend = suspend.then_some(Duration::from_secs(30));
                let plan = Plan { exec_command: command, copy_ram, kexec, suspend, ..plan };
                match (vm, to) {
                    (Some(vm), Some(Place::Each(shelf @ Shelf::Best(_)))) if mode == Mode::CprReboot => {
                        (Vm { vm }, Action::CheckBest(plan, shelf))
                    }
                    (Some(_), Some(Place::Each(_))) => return Err(usage("--to: a directory is for --all")),
                    (Some(vm), to) => {
                        let main = to.and_then(Place::one);
                        let cpr = main.clone().filter(|_| mode == Mode::CprTransfer);
                        (Vm { vm }, Action::Check(Plan { channels: Channels { main, cpr }, ..plan }))
                    }
                    (None, to) => match to.and_then(Place::for_all).filter(|_| mode == Mode::CprReboot) {
                        Some(shelf) => {
                            (Vm::default(), Action::CheckAll(All { plan, shelf, except, jobs: None }))
                        }
                        None => {
                            return Err(usage(
                                "--all: expected --mode reboot, and --to dir:PATH, auto:PATH or luo:",
                            ));
                        }
                    },
                }
            }
            Self::Status(vm) => (vm, Action::Status),
            Self::Stop(vm) => (vm, Action::Stop),
            Self::Cont(vm) => (vm, Action::Cont),
            Self::Cancel(vm) => (vm, Action::Cancel),
            Self::Quit(vm) => (vm, Action::Quit),
        })
    }
}

fn usage(what: &str) -> clap::Error {
    clap::Error::raw(clap::error::ErrorKind::ValueValidation, format!("{what}\n"))
}

impl Plan {
    /// Whether something is done with all of the RAM.
    pub fn moves_ram(&self) -> bool {
        self.copy_ram || matches!(self.channels.main, Some(Address::LiveUpdate(_)))
    }

    fn new(mode: Mode, channels: Channels, bounds: &Bounds) -> Self {
        Self {
            mode,
            channels,
            exec_command: Vec::new(),
            copy_ram: false,
            kexec: false,
            suspend: None,
            downtime_limit: bounds.downtime_limit,
            timeout: Duration::from_secs(bounds.timeout),
            keep: false,
        }
    }
}

fn address(text: &str) -> Result<Address, String> {
    let absolute = |path: &Path| std::path::absolute(path).map_err(|error| error.to_string());
    match Address::from_uri(text).map_err(|error| error.desc)? {
        Address::Unix(path) => Ok(Address::Unix(absolute(&path)?)),
        Address::File(path) => Ok(Address::File(absolute(&path)?)),
        named @ Address::LiveUpdate(_) => Ok(named),
    }
}

/// Where one guest goes, or each by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    One(Address),
    Each(Shelf),
}

impl Place {
    fn one(self) -> Option<Address> {
        match self {
            Self::One(address) => Some(address),
            Self::Each(_) => None,
        }
    }

    /// Where all guests go, each under its own name.
    fn for_all(self) -> Option<Shelf> {
        match self {
            Self::Each(shelf) => Some(shelf),
            Self::One(Address::LiveUpdate(name)) if name.is_empty() => Some(Shelf::LiveUpdate),
            Self::One(_) => None,
        }
    }
}

fn place(text: &str) -> Result<Place, String> {
    let of = |path: &str, shelf: fn(PathBuf) -> Shelf| {
        let path = std::path::absolute(path).map_err(|error| error.to_string())?;
        Ok(Place::Each(shelf(path)))
    };
    if let "dir:" | "auto:" = text {
        return Err(format!("expected {text}PATH"));
    } else if let Some(path) = text.strip_prefix("dir:") {
        return of(path, Shelf::Directory);
    } else if let Some(path) = text.strip_prefix("auto:") {
        return of(path, Shelf::Best);
    }
    address(text).map(Place::One)
}

fn unix(text: &str) -> Result<Address, String> {
    match address(text)? {
        found @ Address::Unix(_) => Ok(found),
        Address::File(_) | Address::LiveUpdate(_) => Err("expected unix:PATH".into()),
    }
}

fn file(text: &str) -> Result<Address, String> {
    match address(text)? {
        found @ Address::File(_) => Ok(found),
        Address::Unix(_) | Address::LiveUpdate(_) => Err("expected file:PATH".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Action, String> {
        let words = std::iter::once("cpr-save").chain(line.split_whitespace());
        let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
        Invocation::from_cli(cli).map(|invocation| invocation.action).map_err(|error| error.to_string())
    }

    fn plan(line: &str) -> Plan {
        match parse(line).unwrap() {
            Action::Handover(plan) | Action::Check(plan) => plan,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_definition_holds_together() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_shows_an_example_in_its_help() {
        use clap::CommandFactory;
        for verb in Cli::command().get_subcommands() {
            let help = verb.get_after_help().unwrap_or_else(|| panic!("{}", verb.get_name())).to_string();
            assert!(help.contains(&format!("cpr-save {}", verb.get_name())), "{help}");
            assert!(AFTER_HELP.contains(&format!("cpr-save {}", verb.get_name())), "{help}");
        }
    }

    #[test]
    fn one_socket_serves_as_both_channels_unless_another_is_named() {
        let one = plan("transfer web --to unix:/a");
        assert_eq!(one.channels.main, one.channels.cpr);
        let two = plan("transfer web --to unix:/a --main unix:/b");
        assert_eq!(two.channels.main, Some(Address::Unix("/b".into())));
        assert_eq!(two.channels.cpr, Some(Address::Unix("/a".into())));
    }

    #[test]
    fn a_relative_path_is_made_absolute() {
        let Some(Address::File(path)) = plan("reboot web --to file:web.state").channels.main else {
            panic!()
        };
        assert!(path.is_absolute(), "{}", path.display());
    }

    #[test]
    fn the_command_of_exec_comes_after_two_dashes_and_may_be_left_out() {
        assert_eq!(plan("exec web -- /bin/x --flag").exec_command, ["/bin/x", "--flag"]);
        assert!(plan("exec web").exec_command.is_empty());
    }

    #[test]
    fn what_does_not_fit_is_a_usage_error() {
        for line in [
            "",
            "transfer web",
            "transfer web --to file:/a",
            "transfer web --to tcp:host:1",
            "transfer --to unix:/a",
            "reboot web --to unix:/a",
            "reboot web --to file:",
            "reboot web --to dir:/a",
            "reboot --to file:/a",
            "reboot --all --to file:/a",
            "reboot --all --to luo:web",
            "reboot web --to luo: --copy-ram",
            "transfer web --to luo:",
            "reboot web --all --to dir:/a",
            "reboot web --to auto:",
            "reboot web --to auto:/a --except db",
            "check web --mode exec --to auto:/a",
            "reboot web --to file:/a --jobs 2",
            "reboot --all --to dir:/a --jobs 0",
            "check --all --mode exec --to dir:/a",
            "check --all --mode reboot",
            "check web --mode exec --suspend",
            "reboot web --suspend 5 --to file:/a",
            "reboot web --suspend=0 --to file:/a",
            "check web --mode reboot --to dir:/a",
            "exec web /bin/x",
            "check web",
            "check web --mode live",
            "stop",
            "stop web now",
            "transfer web --to unix:/a --downtime-limit 0",
            "transfer web --to unix:/a --timeout never",
            "--log =, status web",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_guest_may_take_thirty_seconds_to_sleep_unless_more_or_less_is_said() {
        let suspend = |line: &str| plan(line).suspend.map(|within| within.as_secs());
        assert_eq!(suspend("reboot web --to file:/a"), None);
        assert_eq!(suspend("reboot web --suspend --to file:/a"), Some(30));
        assert_eq!(suspend("reboot web --suspend=5 --to file:/a"), Some(5));
        assert!(suspend("check web --mode reboot --suspend").is_some());
    }

    #[test]
    fn all_guests_go_to_a_directory() {
        let parsed = parse("reboot --all --to dir:/var/lib/cpr --jobs 3 --copy-ram --except db").unwrap();
        let Action::SaveAll(all) = parsed else { panic!("{parsed:?}") };
        assert_eq!(all.except, ["db"]);
        assert_eq!((all.shelf, all.jobs), (Shelf::Directory("/var/lib/cpr".into()), NonZero::new(3)));
        assert!(all.plan.copy_ram && all.plan.mode == Mode::CprReboot);
        assert!(matches!(parse("check --all --mode reboot --to dir:/a"), Ok(Action::CheckAll(_))));
    }

    #[test]
    fn a_live_update_has_the_guests_own_name_unless_another_is_given() {
        let named = |line: &str| plan(line).channels.main;
        assert_eq!(named("reboot web --to luo:"), Some(Address::LiveUpdate(String::new())));
        assert_eq!(named("check web --mode reboot --to luo:db"), Some(Address::LiveUpdate("db".into())));
        let Action::SaveAll(all) = parse("reboot --all --to luo:").unwrap() else { panic!() };
        let memory = (Address::LiveUpdate("web".into()), "luo:web".to_owned());
        assert_eq!(all.shelf.places("web"), std::slice::from_ref(&memory));
        let Action::SaveBest(_, shelf) = parse("reboot web --to auto:/a").unwrap() else { panic!() };
        let file = (Address::File("/a/web.state".into()), "file:/a/web.state".to_owned());
        assert_eq!(shelf.places("web"), [memory, file]);
    }

    #[test]
    fn a_mode_is_read_with_and_without_its_prefix() {
        assert_eq!(plan("check web --mode cpr-exec").mode, Mode::CprExec);
        assert_eq!(plan("check web --mode transfer").mode, Mode::CprTransfer);
    }
}
