//! Saves all guests of the host, or one where it is best kept.
//!
//! 1. Every guest is asked what stands in the way before any is touched: one that cannot go keeps all of them.
//! 2. So many at a time are saved, each as `reboot` saves one. After the first that fails, or a signal, no other is begun.
//! 3. A guest that is there when all are saved came meanwhile, and was not.
//! 4. The end tells of each guest where it is.

use std::fmt::Write;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::slice;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use std::{fmt, io, iter};

use anyhow::{Context, anyhow};
use serde_json::{Value, json};
use vmm_core::cpr::reboot::state_file;
use vmm_core::monitor::client::ClientError;
use vmm_core::monitor::{Address, Channels, RunState, paths};

use crate::exit::{Failure, Several};
use crate::flags::Plan;
use crate::guest::Guest;
use crate::handover::Report;
use crate::progress::Progress;
use crate::signals::Signals;
use crate::{check, handover};

/// All guests are to be saved, or asked whether they could be.
#[derive(Debug, PartialEq, Eq)]
pub struct All {
    /// How, but for the place. RAM is copied where it would not survive otherwise.
    pub plan: Plan,
    /// Where they go.
    pub shelf: Shelf,
    /// Names of those that are left alone.
    pub except: Vec<String>,
    /// How many are saved at a time; `None`: as many as there are processors.
    pub jobs: Option<NonZero<usize>>,
}

/// Where guests wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shelf {
    /// In files of a directory, each of the name `NAME.state`.
    Directory(PathBuf),
    /// In memory that the host's next kernel finds.
    LiveUpdate,
    /// In memory where the kernel can keep it, else in a file of a directory.
    Best(PathBuf),
}

impl Shelf {
    /// Where a guest may go, in the order in which that is tried, each with what `cpr-load` calls it.
    pub fn places(&self, guest: &str) -> Vec<(Address, String)> {
        let memory = || (Address::LiveUpdate(guest.to_owned()), format!("luo:{guest}"));
        let file = |directory: &Path| {
            let file = state_file(directory, guest);
            let from = format!("file:{}", file.display());
            (Address::File(file), from)
        };
        match self {
            Self::Directory(path) => vec![file(path)],
            Self::LiveUpdate => vec![memory()],
            Self::Best(path) => vec![memory(), file(path)],
        }
    }
}

impl fmt::Display for Shelf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = "memory, which their keepers have until the kexec";
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::LiveUpdate => f.write_str(memory),
            Self::Best(path) => write!(f, "{memory}, or in {}", path.display()),
        }
    }
}

/// A guest that is to go.
struct One {
    name: String,
    vm: PathBuf,
    plan: Plan,
    from: String,
}

/// Those that are to go, and the names of processes without a guest.
#[derive(Default)]
struct Ready {
    guests: Vec<One>,
    passed_over: Vec<String>,
}

/// `reboot --all`.
pub fn save(all: &All, progress: &Progress) -> Result<(), Failure> {
    let signals = Signals::block().map_err(Failure::refused)?;
    let Ready { guests, passed_over } = ready(all, progress)?;
    let at_a_time = all.jobs.map_or_else(processors, NonZero::get).min(guests.len());
    let course = Mutex::new(Course {
        waiting: guests.iter(),
        passed_over,
        reports: Vec::new(),
        several: Several::default(),
    });
    thread::scope(|scope| {
        for _ in 0..at_a_time {
            let (signals, course) = (signals.clone(), &course);
            scope.spawn(move || {
                // The lock is not held while a guest is saved.
                let next = || lock(course).next(&signals);
                while let Some(one) = next() {
                    let progress = progress.of(&one.name);
                    if let Ok(None) = guest_at(&one.vm) {
                        progress.note("has ended", &json!({"event": "ended"}));
                        lock(course).passed_over.push(one.name.clone());
                        continue;
                    }
                    match handover::hand_over(&one.vm, &one.plan, &signals, &progress) {
                        Ok(report) => {
                            let facts = one.facts(&report);
                            lock(course).saved(one, facts.clone());
                            progress.done(&report.brief(), &facts);
                        }
                        Err(failure) => lock(course).several.failed.push((one.name.clone(), failure)),
                    }
                }
            });
        }
    });
    let Course { waiting, passed_over, reports, mut several } =
        course.into_inner().unwrap_or_else(PoisonError::into_inner);
    several.not_begun = waiting.map(|one| one.name.clone()).collect();
    if several.failed.is_empty() && several.not_begun.is_empty() {
        several.failed = late(&all.except);
    }
    if !several.failed.is_empty() || !several.not_begun.is_empty() {
        return Err(Failure::Several(several));
    }
    let text = format!("{} guests saved in {}{}", reports.len(), all.shelf, besides(&passed_over));
    progress.done(&text, &json!({"guests": reports, "passed-over": passed_over}));
    Ok(())
}

/// How far the saving has got.
struct Course<'a> {
    waiting: slice::Iter<'a, One>,
    passed_over: Vec<String>,
    reports: Vec<Value>,
    several: Several,
}

impl<'a> Course<'a> {
    /// The next guest that is to go, if any still is.
    fn next(&mut self, signals: &Signals) -> Option<&'a One> {
        if self.several.failed.is_empty() && !signals.came() { self.waiting.next() } else { None }
    }

    fn saved(&mut self, one: &One, facts: Value) {
        self.several.saved.push((one.name.clone(), one.from.clone()));
        self.reports.push(facts);
    }
}

impl One {
    /// The report of its save, for machines.
    fn facts(&self, report: &Report) -> Value {
        let mut facts = report.json(self.plan.mode);
        facts["guest"] = json!(self.name);
        facts["from"] = json!(self.from);
        facts
    }
}

/// `check --all`.
pub fn check(all: &All, progress: &Progress) -> Result<(), Failure> {
    let Ready { guests, passed_over } = ready(all, progress)?;
    let mut text = format!(
        "nothing stands in the way of {} of {} guests{}",
        all.plan.mode,
        guests.len(),
        besides(&passed_over)
    );
    for One { name, from, plan, .. } in &guests {
        let copied = if plan.copy_ram { ", its RAM copied" } else { "" };
        let _ = write!(text, "\n  {name}: to {from}{copied}");
    }
    let places: Vec<_> = guests.iter().map(|one| json!({"guest": one.name, "from": one.from})).collect();
    progress.done(&text, &json!({"mode": all.plan.mode, "guests": places, "passed-over": passed_over}));
    Ok(())
}

/// Where guests are looked for, and who has none there.
fn besides(passed_over: &[String]) -> String {
    let looked = format!("; looked for in {}", paths::runtime_dir().display());
    if passed_over.is_empty() {
        looked
    } else {
        format!("{looked}, without a guest: {}", passed_over.join(", "))
    }
}

/// All guests, once nothing stands in the way of any.
fn ready(all: &All, progress: &Progress) -> Result<Ready, Failure> {
    let (mut ready, mut several) = (Ready::default(), Several::default());
    let mut listed = guests().map_err(Failure::refused)?;
    if let Some(unknown) = all.except.iter().find(|except| !listed.iter().any(|(name, _)| name == *except)) {
        let error = anyhow!("no guest '{unknown}' to be left alone in {}", paths::runtime_dir().display());
        return Err(Failure::refused(error));
    }
    listed.retain(|(name, _)| !all.except.contains(name));
    for (name, vm) in listed {
        let way = match guest_at(&vm).map_err(Failure::refused) {
            Ok(Some((mut guest, _))) => way_of(&mut guest, &name, &all.plan, &all.shelf).map(Some),
            Ok(None) => Ok(None),
            Err(failure) => Err(failure),
        };
        match way {
            Ok(Some((plan, from))) => ready.guests.push(One { name, vm, plan, from }),
            Ok(None) => {
                progress.of(&name).note("has no guest", &json!({"event": "passed-over"}));
                ready.passed_over.push(name);
            }
            Err(failure) => several.failed.push((name, failure)),
        }
    }
    if several.failed.is_empty() {
        return Ok(ready);
    }
    several.not_begun = ready.guests.into_iter().map(|one| one.name).collect();
    Err(Failure::Several(several))
}

/// How one guest goes, to the first place in whose way nothing stands.
pub fn best(vm: &Path, plan: &Plan, shelf: &Shelf) -> Result<Plan, Failure> {
    let mut guest = Guest::connect(vm)?;
    let name = guest.name().map_err(Failure::refused)?;
    way_of(&mut guest, &name, plan, shelf).map(|(plan, _)| plan)
}

/// How a guest goes and where it is found then, when nothing stands in its way to one of the places.
fn way_of(guest: &mut Guest, name: &str, plan: &Plan, shelf: &Shelf) -> Result<(Plan, String), Failure> {
    let (mut blockers, mut why) = (Vec::new(), None);
    for (to, from) in shelf.places(name) {
        let plan = Plan {
            copy_ram: plan.copy_ram && matches!(to, Address::File(_)),
            channels: Channels { main: Some(to), cpr: None },
            ..plan.clone()
        };
        match way_to(guest, &plan) {
            Ok(plan) => return Ok((plan, from)),
            Err(Failure::Refused { blockers: found, error }) => {
                blockers.extend(found.into_iter().filter(|one| !blockers.contains(one)).collect::<Vec<_>>());
                why.get_or_insert(error);
            }
            Err(failure) => return Err(failure),
        }
    }
    let error = why.unwrap_or_else(|| anyhow!("there is no place for it"));
    Err(Failure::Refused { blockers, error })
}

/// How a guest goes to one place: asleep only where it must, and its RAM copied only where it would not outlive a kexec, whatever comes.
fn way_to(guest: &mut Guest, plan: &Plan) -> Result<Plan, Failure> {
    // Others than us do not say what outlives a kexec.
    let (knows, told) = (guest.has_cpr_commands, plan.suspend);
    let mut plans = Vec::new();
    for suspend in iter::once(None).chain(told.map(Some)) {
        if plan.copy_ram && knows {
            plans.push(Plan { copy_ram: false, kexec: true, suspend, ..plan.clone() });
        }
        plans.push(Plan { suspend, ..plan.clone() });
    }
    let mut why = Failure::refused(anyhow!("there is no way for it"));
    for plan in plans {
        match check::refuse(guest, &plan) {
            Ok(()) => return Ok(plan),
            // Nothing has been touched yet.
            Err(Failure::Unknown(error)) => return Err(Failure::refused(error)),
            Err(refused) => why = refused,
        }
    }
    Err(why)
}

/// Guests that are here, or may be, though all were saved.
fn late(except: &[String]) -> Vec<(String, Failure)> {
    let listed = match guests() {
        Ok(listed) => listed.into_iter().filter(|(name, _)| !except.contains(name)),
        Err(error) => return vec![(paths::runtime_dir().display().to_string(), Failure::Unknown(error))],
    };
    let ask = |(name, vm): (String, PathBuf)| match guest_at(&vm) {
        Ok(None) | Err(ClientError::Closed) => None,
        Ok(Some((_, state))) => {
            let error = anyhow!("it came when the others were asked already, and was not saved");
            Some((name, Failure::InSource { state, error }))
        }
        Err(error) => {
            let error = anyhow::Error::from(error).context("asking it once more");
            Some((name, Failure::Unknown(error)))
        }
    };
    listed.filter_map(ask).collect()
}

fn guests() -> anyhow::Result<Vec<(String, PathBuf)>> {
    paths::guests().with_context(|| format!("looking for guests in {}", paths::runtime_dir().display()))
}

/// The guest that a monitor's socket is of, and its run state; none where nobody listens, as after a process that was killed, or where
/// who does has no guest.
fn guest_at(vm: &Path) -> Result<Option<(Guest, RunState)>, ClientError> {
    let mut guest = match Guest::try_connect(vm, Duration::ZERO) {
        Err(ClientError::Connect { source, .. })
            if [io::ErrorKind::ConnectionRefused, io::ErrorKind::NotFound].contains(&source.kind()) =>
        {
            return Ok(None);
        }
        guest => guest?,
    };
    let state = guest.run_state()?;
    let gone = matches!(state, RunState::Inmigrate | RunState::Postmigrate | RunState::Shutdown);
    Ok((!gone).then_some((guest, state)))
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
