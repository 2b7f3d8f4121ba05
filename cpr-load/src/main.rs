//! `cpr-load`: the process that owns a guest. It boots one cold, or takes one over.

mod commands;
mod flags;

use std::process::ExitCode;

use crate::flags::{Action, Invocation};

fn main() -> ExitCode {
    let invocation = match Invocation::from_command_line() {
        Ok(invocation) => invocation,
        Err(error) => return exit(&error, 2),
    };
    tracing_subscriber::fmt().with_env_filter(invocation.log).with_writer(std::io::stderr).init();
    let result = match invocation.action {
        Action::Boot(boot) => commands::boot(*boot),
        Action::Resume(resume) => commands::resume(resume),
        Action::Check(check) => Ok(commands::check(&check)),
        Action::Inspect(inspect) => commands::inspect(&inspect),
    };
    match result {
        Ok(code) => code,
        Err(error) => exit(&error, 1),
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
