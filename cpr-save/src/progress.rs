//! What the operator sees: one line of progress on a terminal, plain lines without one, JSON lines for machines.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::exit::Failure;

/// Where news of a command goes.
pub enum Progress {
    Terminal(ProgressBar),
    Plain,
    Json,
}

impl Progress {
    /// JSON lines, or text for what standard error is.
    pub fn new(json: bool) -> Self {
        if json {
            return Self::Json;
        }
        if !std::io::stderr().is_terminal() {
            return Self::Plain;
        }
        let bar = ProgressBar::no_length();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            bar.set_style(style);
        }
        Self::Terminal(bar)
    }

    /// Something is under way.
    pub fn step(&self, text: &str, facts: &Value) {
        match self {
            Self::Terminal(bar) => {
                bar.enable_steady_tick(Duration::from_millis(100));
                bar.set_message(text.to_owned());
            }
            Self::Plain => eprintln!("{text}"),
            Self::Json => print(facts),
        }
    }

    /// The end of what was asked: a text for people, facts for machines.
    pub fn done(&self, text: &str, facts: &Value) {
        match self {
            Self::Terminal(bar) => {
                bar.finish_and_clear();
                println!("{text}");
            }
            Self::Plain => println!("{text}"),
            Self::Json => {
                let mut facts = facts.clone();
                facts["outcome"] = json!("done");
                print(&facts);
            }
        }
    }

    /// The end of what could not be done.
    pub fn failed(&self, failure: &Failure) -> ExitCode {
        match self {
            Self::Json => {
                let mut facts =
                    json!({"outcome": failure.outcome(), "error": format!("{:#}", failure.error())});
                if let Failure::InSource { state, .. } = failure {
                    facts["run-state"] = json!(state);
                }
                if !failure.blockers().is_empty() {
                    facts["blockers"] = json!(failure.blockers());
                }
                print(&facts);
            }
            Self::Terminal(_) | Self::Plain => {
                if let Self::Terminal(bar) = self {
                    bar.finish_and_clear();
                }
                let place = match failure {
                    Failure::InSource { state, .. } => format!("; the guest is in the source, {state}"),
                    Failure::Refused { .. } => "; nothing was touched".to_owned(),
                    Failure::Unknown(_) => "; it is not known where the guest is".to_owned(),
                };
                eprintln!("cpr-save: {:#}{place}", failure.error());
                for blocker in failure.blockers() {
                    eprintln!("  {blocker}");
                }
            }
        }
        failure.code()
    }
}

/// Prints a line; who closed our output does not want it.
fn print(facts: &Value) {
    let _ = writeln!(std::io::stdout(), "{facts}");
}
