//! `cpr-save`: hands a running guest over, and says how that went.

mod all;
mod check;
mod exit;
mod flags;
mod guest;
mod handover;
mod progress;
mod signals;
mod verbs;

use std::io::IsTerminal;
use std::process::ExitCode;

use crate::flags::{Action, Invocation};
use crate::progress::Progress;

fn main() -> ExitCode {
    let invocation = Invocation::from_command_line();
    tracing_subscriber::fmt()
        .with_env_filter(invocation.log.clone())
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .init();
    let progress = Progress::new(invocation.json);
    let result = match &invocation.action {
        Action::Handover(plan) => handover::run(&invocation.vm, plan, &progress),
        Action::SaveBest(plan, shelf) => all::best(&invocation.vm, plan, shelf)
            .and_then(|plan| handover::run(&invocation.vm, &plan, &progress)),
        Action::CheckBest(plan, shelf) => all::best(&invocation.vm, plan, shelf)
            .and_then(|plan| check::run(&invocation.vm, &plan, &progress)),
        Action::SaveAll(all) => all::save(all, &progress),
        Action::CheckAll(all) => all::check(all, &progress),
        Action::Check(plan) => check::run(&invocation.vm, plan, &progress),
        Action::Status => verbs::status(&invocation.vm, &progress),
        Action::Stop => verbs::stop(&invocation.vm, &progress),
        Action::Cont => verbs::cont(&invocation.vm, &progress),
        Action::Cancel => verbs::cancel(&invocation.vm, &progress),
        Action::Quit => verbs::quit(&invocation.vm, &progress),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => progress.failed(&failure),
    }
}
