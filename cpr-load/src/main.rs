//! `cpr-load`: the process that owns a guest. It boots one cold, or takes one over.

mod commands;
mod flags;
mod shelter;

use std::io::IsTerminal;
use std::process::ExitCode;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::flags::{Action, Invocation};

fn main() -> ExitCode {
    let invocation = match Invocation::from_command_line() {
        Ok(invocation) => invocation,
        Err(error) => return exit(&error, 2),
    };
    tracing_subscriber::fmt()
        .with_env_filter(invocation.log)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    open_as_many_as_allowed();
    let result = match invocation.action {
        Action::Boot(boot) => commands::boot(*boot),
        Action::Start(start) => commands::start(*start),
        Action::Early(early) => commands::early(early),
        Action::Resume(resume) => commands::resume(resume),
        Action::Check(check) => Ok(commands::check(&check)),
        Action::Inspect(inspect) => commands::inspect(&inspect),
        Action::Keep(guest, numbers) => commands::keep(&guest, numbers),
    };
    match result {
        Ok(code) => code,
        Err(error) => exit(&error, 1),
    }
}

/// Raises the soft limit of open files to the hard one: a guest with many queues and assigned devices needs some thousands,
/// and nothing here uses select(2), which the soft limit is low for.
fn open_as_many_as_allowed() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!("raising the limit of open files: {error}");
    }
}

/// Prints an error once, as one line with its causes; a cause that the message before it tells is not told again.
fn exit(error: &anyhow::Error, code: u8) -> ExitCode {
    let mut line = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    eprintln!("cpr-load: {line}");
    ExitCode::from(code)
}
