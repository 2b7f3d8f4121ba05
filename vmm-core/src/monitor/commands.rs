//! From a request to its answer: what QMP asks, said to [`Control`].

use std::time::Duration;

use serde_json::{Value, json};

use super::args::Args;
use super::channels::Channels;
use super::control::{CheckRequest, CommandError, Control, check_destination};
use super::types::{MigrateCapabilities, MigrateParametersUpdate};
use crate::cpr::Mode;
use crate::memory::RamFate;

type Answer = Result<Value, CommandError>;

/// What a command does.
enum Command {
    /// Tells something.
    Query(fn(&dyn Control) -> Value),
    /// Does something, and takes no arguments.
    Act(fn(&dyn Control) -> Result<(), CommandError>),
    /// Takes arguments; refuses what it does not know before it does anything.
    With(fn(&dyn Control, Args) -> Answer),
}

use Command::{Act, Query, With};

/// Every command but `qmp_capabilities`, in the order in which `query-commands` names them.
const COMMANDS: &[(&str, Command)] = &[
    ("balloon", With(balloon)),
    ("cont", Act(|control| control.cont())),
    ("migrate", With(migrate)),
    ("migrate-incoming", With(migrate_incoming)),
    ("migrate-set-capabilities", With(migrate_set_capabilities)),
    ("migrate-set-parameters", With(migrate_set_parameters)),
    ("migrate_cancel", Act(|control| control.migrate_cancel())),
    ("query-balloon", With(query_balloon)),
    ("query-commands", Query(|_| names().map(|name| json!({"name": name})).collect())),
    ("query-cpus-fast", Query(query_cpus_fast)),
    ("query-migrate", Query(|control| json!(control.migration()))),
    ("query-migrate-capabilities", Query(query_migrate_capabilities)),
    ("query-migrate-parameters", Query(query_migrate_parameters)),
    ("query-name", Query(|control| json!({"name": control.name()}))),
    ("query-status", Query(query_status)),
    ("query-uuid", Query(|control| json!({"UUID": control.uuid()}))),
    ("query-version", Query(|_| version())),
    ("quit", Act(|control| control.quit())),
    ("stop", Act(|control| control.stop())),
    ("system_powerdown", Act(|control| control.system_powerdown())),
    ("system_reset", Act(|control| control.system_reset())),
    ("system_wakeup", Act(|control| control.system_wakeup())),
    ("x-cpr-agent", With(agent)),
    ("x-cpr-check", With(check)),
    ("x-cpr-early", With(early)),
    ("x-cpr-report", Query(|control| json!(control.report()))),
    ("x-cpr-stay-awake", With(stay_awake)),
];

fn names() -> impl Iterator<Item = &'static str> {
    std::iter::once("qmp_capabilities").chain(COMMANDS.iter().map(|(name, _)| *name))
}

/// What a client is greeted with.
pub(super) fn greeting() -> Value {
    json!({"QMP": {"version": version(), "capabilities": []}})
}

/// The QEMU whose monitor this one follows, and the build that does so.
fn version() -> Value {
    json!({
        "qemu": {"major": 10, "minor": 2, "micro": 0},
        "package": concat!("cpr ", env!("CARGO_PKG_VERSION")),
    })
}

/// A request, taken apart as far as answering it needs.
struct Request {
    id: Option<Value>,
    command: Result<(String, Args), CommandError>,
}

impl Request {
    fn new(value: Value) -> Self {
        let Ok(mut members) = Args::new("request", value) else {
            let error = CommandError::generic("QMP input must be a JSON object");
            return Self { id: None, command: Err(error) };
        };
        Self { id: members.optional_value("id"), command: Self::command(members) }
    }

    fn command(mut members: Args) -> Result<(String, Args), CommandError> {
        let name = members.string("execute")?;
        let arguments = members.optional_value("arguments").unwrap_or_else(|| json!({}));
        let arguments = Args::new("arguments", arguments)?;
        members.finish()?;
        Ok((name, arguments))
    }
}

/// Answers one request. `negotiated` says whether the client has been past `qmp_capabilities`, and is set when it passes.
pub(super) fn answer(control: &dyn Control, negotiated: &mut bool, request: Value) -> Value {
    let request = Request::new(request);
    let answer = request.command.and_then(|(name, args)| execute(control, negotiated, &name, args));
    let mut message = match answer {
        Ok(value) => json!({"return": value}),
        Err(error) => error_message(&error),
    };
    if let Some(id) = request.id {
        message["id"] = id;
    }
    message
}

/// An error as QMP writes it.
pub(super) fn error_message(error: &CommandError) -> Value {
    json!({"error": error})
}

fn execute(control: &dyn Control, negotiated: &mut bool, name: &str, args: Args) -> Answer {
    if name == "qmp_capabilities" {
        return negotiate(negotiated, args);
    }
    if !*negotiated {
        return Err(CommandError::not_found("expecting capabilities negotiation with 'qmp_capabilities'"));
    }
    let Some((_, command)) = COMMANDS.iter().find(|(known, _)| *known == name) else {
        return Err(CommandError::not_found(format!("the command {name} has not been found")));
    };
    match command {
        Query(query) => args.finish().map(|()| query(control)),
        Act(act) => args.finish().and_then(|()| done(act(control))),
        With(command) => command(control, args),
    }
}

fn negotiate(negotiated: &mut bool, mut args: Args) -> Answer {
    if *negotiated {
        return Err(CommandError::not_found("capabilities negotiation is already complete, command ignored"));
    }
    if let Some(capability) = args.optional_strings("enable")?.and_then(|list| list.into_iter().next()) {
        return Err(CommandError::value("enable", &capability, "none: no capability is offered"));
    }
    args.finish()?;
    *negotiated = true;
    Ok(json!({}))
}

fn done(result: Result<(), CommandError>) -> Answer {
    result.map(|()| json!({}))
}

fn query_status(control: &dyn Control) -> Value {
    let state = control.run_state();
    json!({"status": state, "running": state == super::RunState::Running})
}

fn query_cpus_fast(control: &dyn Control) -> Value {
    let cpus = control.cpus().into_iter().map(|cpu| {
        json!({
            "cpu-index": cpu.cpu_index,
            "thread-id": cpu.thread_id,
            "qom-path": format!("/machine/cpu[{}]", cpu.cpu_index),
            "target": "x86_64",
        })
    });
    cpus.collect()
}

fn query_migrate_parameters(control: &dyn Control) -> Value {
    let parameters = control.migrate_parameters();
    json!({
        "mode": parameters.mode.map_or("normal", Mode::name),
        "cpr-exec-command": parameters.cpr_exec_command,
        "downtime-limit": parameters.downtime_limit,
        "x-cpr-prepare-timeout": parameters.prepare_timeout,
    })
}

fn query_migrate_capabilities(control: &dyn Control) -> Value {
    let capabilities = control.migrate_capabilities();
    json!([
        {"capability": "x-ignore-shared", "state": capabilities.ignore_shared},
        {"capability": "events", "state": capabilities.events},
    ])
}

fn migrate_set_parameters(control: &dyn Control, mut args: Args) -> Answer {
    let mode = args.optional_string("mode")?.map(|name| optional_mode(&name)).transpose()?;
    let update = MigrateParametersUpdate {
        mode,
        cpr_exec_command: args.optional_strings("cpr-exec-command")?,
        downtime_limit: milliseconds(&mut args, "downtime-limit")?,
        prepare_timeout: milliseconds(&mut args, "x-cpr-prepare-timeout")?,
    };
    args.finish()?;
    done(control.migrate_set_parameters(update))
}

fn milliseconds(args: &mut Args, name: &str) -> Result<Option<u64>, CommandError> {
    const MAX: u64 = 24 * 60 * 60 * 1000;
    match args.optional_u64(name)? {
        Some(value) if value == 0 || value > MAX => {
            Err(CommandError::value(name, &value.to_string(), "1 to 86400000 (milliseconds)"))
        }
        value => Ok(value),
    }
}

fn migrate_set_capabilities(control: &dyn Control, mut args: Args) -> Answer {
    let Value::Array(list) = args.value("capabilities")? else {
        return Err(CommandError::generic("invalid parameter type for 'capabilities', expected: array"));
    };
    args.finish()?;
    let mut capabilities: MigrateCapabilities = control.migrate_capabilities();
    for item in list {
        let mut item = Args::new("capabilities", item)?;
        let name = item.string("capability")?;
        let state = item.bool("state")?;
        item.finish()?;
        match name.as_str() {
            "x-ignore-shared" => capabilities.ignore_shared = state,
            "events" => capabilities.events = state,
            _ => return Err(CommandError::value("capability", &name, "x-ignore-shared or events")),
        }
    }
    done(control.migrate_set_capabilities(capabilities))
}

fn migrate(control: &dyn Control, mut args: Args) -> Answer {
    let channels = Channels::from_args(&mut args)?;
    args.optional_bool("detach")?;
    if args.optional_bool("resume")? == Some(true) {
        return Err(CommandError::value(
            "resume",
            "true",
            "false: a handover is not resumed but started again",
        ));
    }
    let wake = args.optional_bool("x-cpr-wake")?.unwrap_or(false);
    args.finish()?;
    let mode = control.migrate_parameters().mode.ok_or_else(|| {
        CommandError::generic(
            "mode 'normal' is not offered: set 'mode' to cpr-transfer, cpr-exec or cpr-reboot by migrate-set-parameters",
        )
    })?;
    if wake && mode != Mode::CprReboot {
        return Err(CommandError::generic(
            "'x-cpr-wake' is for cpr-reboot: in the other modes nobody suspends the guest",
        ));
    }
    done(control.migrate(channels.destination(mode)?, wake))
}

fn migrate_incoming(control: &dyn Control, mut args: Args) -> Answer {
    let channels = Channels::from_args(&mut args)?;
    args.optional_bool("exit-on-error")?;
    args.finish()?;
    done(control.migrate_incoming(channels.incoming()?))
}

/// Asks the guest to keep `value` bytes of its RAM.
fn balloon(control: &dyn Control, mut args: Args) -> Answer {
    let value =
        args.optional_u64("value")?.ok_or_else(|| CommandError::generic("Parameter 'value' is missing"))?;
    args.finish()?;
    control.balloon(value)?;
    Ok(json!({}))
}

fn query_balloon(control: &dyn Control, args: Args) -> Answer {
    args.finish()?;
    Ok(json!({"actual": control.balloon_actual()?}))
}

fn agent(control: &dyn Control, args: Args) -> Answer {
    args.finish()?;
    Ok(json!({"socket": control.agent()?}))
}

fn stay_awake(control: &dyn Control, mut args: Args) -> Answer {
    const LONGEST: u64 = 3600;
    let seconds = args.optional_u64("seconds")?.filter(|seconds| *seconds <= LONGEST);
    let seconds = seconds.ok_or_else(|| CommandError::generic("Parameter 'seconds': expected 0 to 3600"))?;
    args.finish()?;
    control.stay_awake(Duration::from_secs(seconds))?;
    Ok(json!({}))
}

fn early(control: &dyn Control, args: Args) -> Answer {
    args.finish()?;
    let info = control.early().map(|info| json!(info));
    info.ok_or_else(|| CommandError::generic("this process has not resumed a guest early"))
}

fn check(control: &dyn Control, mut args: Args) -> Answer {
    let mode = required_mode(&args.string("mode")?)?;
    let channels = Channels::from_args(&mut args)?;
    let exec_command = args.optional_strings("cpr-exec-command")?;
    let fate = RamFate::of(args.optional_bool("copy-ram")?.unwrap_or(false));
    let kexec = args.optional_bool("kexec")?.unwrap_or(false);
    let suspend = args.optional_bool("suspend")?.unwrap_or(false);
    args.finish()?;
    let destination = check_destination(mode, channels)?;
    let request = CheckRequest { mode, destination, exec_command, fate, kexec, suspend };
    Ok(json!({"blockers": control.check(&request)?}))
}

fn required_mode(name: &str) -> Result<Mode, CommandError> {
    Mode::ALL
        .into_iter()
        .find(|mode| mode.name() == name)
        .ok_or_else(|| CommandError::value("mode", name, "cpr-transfer, cpr-exec or cpr-reboot"))
}

fn optional_mode(name: &str) -> Result<Option<Mode>, CommandError> {
    if name == "normal" { Ok(None) } else { required_mode(name).map(Some) }
}
