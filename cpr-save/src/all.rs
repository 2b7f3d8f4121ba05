//! Saves all guests of the host.
//!
//! 1. Every guest is asked what stands in the way before any is touched: one that cannot go keeps all of them.
//! 2. So many at a time are saved, each as `reboot` saves one. After the first that fails no other is begun.
//! 3. The end tells of each guest where it is.

use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;

use serde_json::{Value, json};
use vmm_core::monitor::client::ClientError;
use vmm_core::monitor::{Address, Channels, RunState, paths};

use crate::exit::{Failure, Several};
use crate::flags::Plan;
use crate::guest::Guest;
use crate::progress::Progress;
use crate::signals::Signals;
use crate::{check, handover};

/// All guests are to be saved, or asked whether they could be.
#[derive(Debug, PartialEq, Eq)]
pub struct All {
    /// How, but for the file.
    pub plan: Plan,
    /// Where their files go, each of the name `NAME.state`.
    pub directory: PathBuf,
    /// How many are saved at a time; `None`: as many as there are processors.
    pub jobs: Option<NonZero<usize>>,
}

/// A guest that is to go.
struct One {
    name: String,
    vm: PathBuf,
    plan: Plan,
    file: PathBuf,
}

impl One {
    fn from(&self) -> String {
        format!("file:{}", self.file.display())
    }
}

/// `reboot --all`.
pub fn save(all: &All, progress: &Progress) -> Result<(), Failure> {
    let signals = Signals::block().map_err(Failure::refused)?;
    let guests = ready(all, progress)?;
    let at_a_time = all.jobs.map_or_else(processors, NonZero::get).min(guests.len());
    let (waiting, several) = (Mutex::new(guests.iter()), Mutex::new(Several::default()));
    let next = || {
        let failed = lock(&several).failed.is_empty();
        failed.then(|| lock(&waiting).next()).flatten()
    };
    let reports = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..at_a_time {
            let signals = signals.clone();
            let (next, several, reports) = (&next, &several, &reports);
            scope.spawn(move || {
                while let Some(one) = next() {
                    let progress = progress.of(&one.name);
                    match handover::hand_over(&one.vm, &one.plan, &signals, &progress) {
                        Ok(report) => {
                            let mut facts = report.json(one.plan.mode);
                            facts["from"] = json!(one.from());
                            progress.done(&report.brief(), &facts);
                            facts["guest"] = json!(one.name);
                            lock(reports).push(facts);
                            lock(several).saved.push((one.name.clone(), one.from()));
                        }
                        Err(failure) => lock(several).failed.push((one.name.clone(), failure)),
                    }
                }
            });
        }
    });
    let mut several = several.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    if several.failed.is_empty() {
        let reports: Value = lock(&reports).drain(..).collect();
        let text = format!("{} guests saved in {}", guests.len(), all.directory.display());
        progress.done(&text, &json!({"guests": reports}));
        return Ok(());
    }
    several.not_begun = waiting
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .map(|one| one.name.clone())
        .collect();
    Err(Failure::Several(several))
}

/// `check --all`.
pub fn check(all: &All, progress: &Progress) -> Result<(), Failure> {
    let guests = ready(all, progress)?;
    let names: Vec<_> = guests.iter().map(|one| one.name.as_str()).collect();
    let text = format!("nothing stands in the way of {} of {} guests", all.plan.mode, guests.len());
    progress.done(&text, &json!({"mode": all.plan.mode, "guests": names}));
    Ok(())
}

/// All guests, once nothing stands in the way of any.
fn ready(all: &All, progress: &Progress) -> Result<Vec<One>, Failure> {
    let (mut guests, mut several) = (Vec::new(), Several::default());
    for (name, vm) in paths::guests().map_err(Failure::refused)? {
        let file = all.directory.join(format!("{name}.state"));
        let channels = Channels { main: Some(Address::File(file.clone())), cpr: None };
        let plan = Plan { channels, ..all.plan.clone() };
        match ask(&vm, &plan) {
            Ok(true) => guests.push(One { name, vm, plan, file }),
            Ok(false) => progress.of(&name).step("has no guest", &json!({"event": "passed-over"})),
            Err(failure) => several.failed.push((name, failure)),
        }
    }
    if several.failed.is_empty() {
        return Ok(guests);
    }
    several.not_begun = guests.into_iter().map(|one| one.name).collect();
    Err(Failure::Several(several))
}

/// Whether there is a guest, in whose way nothing stands. A socket that nobody listens at is what a process left that was killed.
fn ask(vm: &std::path::Path, plan: &Plan) -> Result<bool, Failure> {
    let mut guest = match Guest::try_connect(vm, std::time::Duration::ZERO) {
        Err(ClientError::Connect { source, .. })
            if source.kind() == std::io::ErrorKind::ConnectionRefused =>
        {
            return Ok(false);
        }
        guest => guest.map_err(Failure::refused)?,
    };
    let state = guest.run_state().map_err(Failure::refused)?;
    if matches!(state, RunState::Inmigrate | RunState::Postmigrate | RunState::Shutdown) {
        return Ok(false);
    }
    check::refuse(&mut guest, plan).map(|()| true)
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
