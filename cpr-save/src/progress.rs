//! What the operator sees: one line of progress for each guest on a terminal, plain lines without one, JSON lines for machines.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::exit::Failure;

/// A line for what takes steps.
const STEPS: &str = "{spinner} {msg} ({elapsed})";

/// Where news of a command goes.
pub struct Progress {
    form: Form,
    /// Which of several guests it is of.
    guest: Option<String>,
}

enum Form {
    Terminal(MultiProgress, ProgressBar),
    Plain,
    Json,
}

impl Progress {
    /// JSON lines, or text for what standard error is.
    pub fn new(json: bool) -> Self {
        let form = match (json, std::io::stderr().is_terminal()) {
            (true, _) => Form::Json,
            (false, false) => Form::Plain,
            (false, true) => {
                let all = MultiProgress::new();
                let bar = all.add(spinner());
                Form::Terminal(all, bar)
            }
        };
        Self { form, guest: None }
    }

    /// The same place, for one of several guests.
    pub fn of(&self, guest: &str) -> Self {
        let form = match &self.form {
            Form::Terminal(all, _) => Form::Terminal(all.clone(), all.add(spinner())),
            Form::Plain => Form::Plain,
            Form::Json => Form::Json,
        };
        Self { form, guest: Some(guest.to_owned()) }
    }

    /// Something that stays to be read.
    pub fn note(&self, text: &str, facts: &Value) {
        match &self.form {
            Form::Terminal(all, bar) => {
                bar.finish_and_clear();
                all.suspend(|| to_stderr(&self.named(text)));
            }
            Form::Plain | Form::Json => self.step(text, facts),
        }
    }

    /// Something is under way.
    pub fn step(&self, text: &str, facts: &Value) {
        match &self.form {
            Form::Terminal(_, bar) => {
                bar.set_style(style(STEPS));
                bar.enable_steady_tick(Duration::from_millis(100));
                bar.set_message(self.named(text));
            }
            Form::Plain => to_stderr(&self.named(text)),
            Form::Json => self.print(facts),
        }
    }

    /// So many bytes of something are done, of so many.
    pub fn amount(&self, what: &str, done: u64, total: u64) {
        match &self.form {
            Form::Terminal(_, bar) => {
                bar.set_style(style(
                    "{spinner} {msg} [{wide_bar}] {bytes} of {total_bytes} ({elapsed}, {eta} left)",
                ));
                bar.set_length(total);
                bar.set_position(done);
                bar.set_message(self.named(what));
            }
            Form::Plain => to_stderr(&self.named(&format!("{what}: {} of {} MiB", done >> 20, total >> 20))),
            Form::Json => self.print(&json!({"event": "amount", "what": what, "done": done, "total": total})),
        }
    }

    /// The end of what was asked: a text for people, facts for machines.
    pub fn done(&self, text: &str, facts: &Value) {
        match &self.form {
            Form::Terminal(all, bar) => {
                bar.finish_and_clear();
                all.suspend(|| to_stdout(&self.named(text)));
            }
            Form::Plain => to_stdout(&self.named(text)),
            Form::Json => {
                let mut facts = facts.clone();
                facts["outcome"] = json!("done");
                self.print(&facts);
            }
        }
    }

    /// The end of what could not be done.
    pub fn failed(&self, failure: &Failure) -> ExitCode {
        match &self.form {
            Form::Json => self.print(&failure.facts()),
            Form::Terminal(..) | Form::Plain => {
                if let Form::Terminal(_, bar) = &self.form {
                    bar.finish_and_clear();
                }
                to_stderr(&format!("cpr-save: {}", self.named(&failure.to_string())));
            }
        }
        failure.code()
    }

    fn named(&self, text: &str) -> String {
        self.guest.as_ref().map_or_else(|| text.to_owned(), |guest| format!("{guest}: {text}"))
    }

    fn print(&self, facts: &Value) {
        let mut facts = facts.clone();
        if let Some(guest) = &self.guest {
            facts["guest"] = json!(guest);
        }
        to_stdout(&facts.to_string());
    }
}

/// Prints a line; who closed our output does not want it.
fn to_stdout(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn to_stderr(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn spinner() -> ProgressBar {
    ProgressBar::no_length().with_style(style(STEPS))
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}
