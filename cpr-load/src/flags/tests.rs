//! The flags as a table: what is read, and what is refused.

use std::io::Write;

use clap::CommandFactory;
use vmm_core::config::{Backing, ByteSize, ChardevConfig};
use vmm_core::cpr::reboot::Place;
use vmm_core::owner::Origin;

use super::*;

fn parse(line: &str) -> Result<Action, String> {
    let words = std::iter::once("cpr-load").chain(line.split_whitespace());
    let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
    Invocation::from_cli(cli).map(|invocation| invocation.action).map_err(|error| format!("{error:#}"))
}

fn boot(line: &str) -> Boot {
    match parse(line).unwrap() {
        Action::Boot(boot) => *boot,
        other => panic!("{line}: {other:?}"),
    }
}

fn resume(line: &str) -> Resume {
    match parse(line).unwrap() {
        Action::Resume(resume) => resume,
        other => panic!("{line}: {other:?}"),
    }
}

const CONFIG: &str =
    "name = \"web\"\ncpus = 2\n[memory]\nsize = \"1G\"\n[boot]\nkernel = \"/boot/a\"\ninitrd = \"/boot/i\"\n";

fn with_config(text: &str, flags: &str) -> Result<Action, String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    parse(&format!("boot --config {} {flags}", file.path().display()))
}

#[test]
fn the_definition_holds_together() {
    Cli::command().debug_assert();
}

#[test]
fn every_verb_shows_an_example_in_its_help() {
    for verb in Cli::command().get_subcommands().filter(|verb| !verb.is_hide_set()) {
        let help = verb.get_after_help().unwrap_or_else(|| panic!("{}", verb.get_name())).to_string();
        assert!(help.contains(&format!("cpr-load {}", verb.get_name())), "{help}");
        assert!(AFTER_HELP.contains(&format!("cpr-load {}", verb.get_name())), "{help}");
    }
}

#[test]
fn a_guest_is_described_by_flags_alone() {
    let boot = boot(
        "boot --name web --cpus 4 --memory size=64M,backing=file,path=/dev/shm/w --kernel /k --cmdline quiet \
         --serial unix:/s --cpu-mask avx2,x2apic --monitor /m --paused",
    );
    assert_eq!(boot.config.cpus, 4);
    assert_eq!(boot.config.memory.size, ByteSize(64 << 20));
    assert_eq!(boot.config.memory.backing, Backing::File { path: "/dev/shm/w".into() });
    assert_eq!(boot.config.serial, ChardevConfig::Unix("/s".into()));
    assert_eq!(boot.config.cpu.mask, ["avx2", "x2apic"]);
    assert_eq!(boot.monitor, Some("/m".into()));
    assert!(boot.paused);
}

#[test]
fn flags_override_the_file_and_leave_the_rest() {
    let Ok(Action::Boot(boot)) = with_config(CONFIG, "--cpus 8 --name other") else { panic!() };
    assert_eq!((boot.config.cpus, boot.config.name.as_str()), (8, "other"));
    assert_eq!(boot.config.memory.size, ByteSize(1 << 30));
    assert_eq!(boot.config.boot.kernel, Some("/boot/a".into()));
}

#[test]
fn a_firmware_flag_takes_the_place_of_the_files_kernel() {
    let Ok(Action::Boot(boot)) = with_config(CONFIG, "--firmware /rom") else { panic!() };
    assert_eq!(boot.config.boot.kernel, None);
    assert_eq!(boot.config.boot.initrd, None);
    assert_eq!(boot.config.boot.firmware, Some("/rom".into()));
}

#[test]
fn a_file_that_is_not_right_is_named_in_the_error() {
    let error = with_config("colour = 1", "").unwrap_err();
    assert!(error.starts_with('/') && error.contains("colour"), "{error}");
    assert!(parse("boot --config /does/not/exist").unwrap_err().contains("/does/not/exist"));
}

#[test]
fn one_socket_serves_as_both_channels_unless_another_is_named() {
    let unix = |cpr: &str, main: &str| Origin::Listen(cpr.into(), Some(main.into()));
    assert_eq!(resume("resume --from unix:/a").from, unix("/a", "/a"));
    assert_eq!(resume("resume --from unix:/a --main unix:/b").from, unix("/a", "/b"));
    assert_eq!(resume("resume --from file:/f").from, Origin::Saved(Place::File("/f".into())));
    assert_eq!(resume("resume --from luo:web").from, Origin::Saved(Place::LiveUpdate("web".into())));
    assert_eq!(resume("resume --from defer --monitor /m").from, Origin::Deferred);
}

#[test]
fn a_guest_runs_before_its_ram_is_read_only_if_that_is_asked_for() {
    assert!(resume("resume --from file:/f --lazy").lazy && !resume("resume --from file:/f").lazy);
    let start = "start --name web --memory size=1G --kernel /k --saved dir:/d";
    for (line, lazy) in [(start.to_owned(), false), (format!("{start} --lazy"), true)] {
        assert!(matches!(parse(&line), Ok(Action::Start(start)) if start.lazy == lazy), "{line}");
    }
}

#[test]
fn what_may_differ_here_is_kept_in_order() {
    assert_eq!(resume("resume --from file:/f --set a=1 --set b=2").set, ["a=1", "b=2"]);
}

#[test]
fn what_does_not_fit_is_refused() {
    for line in [
        "",
        "boot",
        "boot --name web --memory size=1G",
        "boot --name ../web --memory size=1G --kernel /k",
        "boot --name web --memory 1G --kernel /k",
        "boot --name web --memory size=1G --kernel /k --firmware /f",
        "boot --name web --memory size=1G --firmware /f --initrd /i",
        "boot --name web --memory size=1G --kernel /k --cpus 0",
        "boot --name web --memory size=1G --kernel /k --cpus many",
        "boot --name web --memory size=1G --kernel /k --serial tcp:1",
        "boot --name web --memory size=1G --kernel /k --uuid 1",
        "resume",
        "resume --from tcp:1",
        "resume --from file:/f --main unix:/b",
        "resume --from defer",
        "resume --from defer --monitor /m --main unix:/b",
        "resume --from file:/f --set name",
        "check --from unix:/a",
        "check",
        "inspect",
        "--log =, inspect f",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
}
