//! A guest that is a unit, followed over all that its operator does.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest_init::status::Status;
use serde::{Deserialize, Serialize};

use super::answer::{Answer, CountedOn};
use super::programs::{systemctl, systemctl_show};
use crate::lab::console::{Console, Heard, Reading};
use crate::lab::kexec::Rate;
use crate::lab::paths;

/// For a guest to be there again: a host boots for half a minute here.
const WITHIN: Duration = Duration::from_mins(5);

/// What part of the time a guest's clock may be off by: kvm-clock counts by the rate of the TSC that KVM took when the host booted, and the
/// host's clock by the one that its kernel has found by measuring longer. Emulated, they are up to 0.7 % apart.
const CALIBRATION: u32 = 100;

/// What was seen of a guest, for the host's next kernel.
#[derive(Serialize, Deserialize)]
pub struct Seen {
    heard: Heard,
    answer: Answer,
    known: Vec<String>,
}

/// A guest that is followed.
pub struct Followed {
    pub name: &'static str,
    console: Option<Console>,
    last: Option<(Answer, CountedOn)>,
    /// What its kernel said before anything was done with it.
    known: Vec<String>,
    khz: f64,
}

impl Followed {
    /// The guest of a unit, with what was seen of it under the kernel before this one, and what has counted on since. What it says first may
    /// come before the unit is ready.
    pub fn of(name: &'static str, seen: Option<Seen>, by: CountedOn) -> Result<Self> {
        let (socket, log) = (paths::serial(name), paths::console_log(name));
        let (console, last, known) = match seen {
            Some(Seen { heard, answer, known }) => {
                (Console::go_on(&socket, &log, heard)?, Some((answer, by)), known)
            }
            None => (Console::connect(&socket, &log)?, None, Vec::new()),
        };
        Ok(Self { name, console: Some(console), last, known, khz: 0.0 })
    }

    /// Waits until it is there.
    pub fn settle(&mut self, rate: &Rate) -> Result<()> {
        self.wait_until_active()?;
        self.khz = self.last.map_or_else(|| rate.khz(), |(last, _)| last.asked.khz());
        if self.last.is_none() { self.first().map(drop) } else { Ok(()) }
    }

    fn console(&self) -> Result<&Console> {
        self.console.as_ref().with_context(|| format!("{} is not followed", self.name))
    }

    /// Follows it no more: it is to end.
    pub fn leave(&mut self) {
        self.console = None;
    }

    /// Its unit.
    pub fn unit(&self) -> String {
        format!("cpr@{}.service", self.name)
    }

    /// Waits until its unit says that it runs.
    pub fn wait_until_active(&self) -> Result<()> {
        let deadline = Instant::now() + WITHIN;
        loop {
            let state = systemctl_show(&self.unit(), "ActiveState")?;
            if state == "active" {
                return Ok(());
            }
            ensure!(
                state != "failed" && Instant::now() < deadline,
                "{} is {state}:\n{}",
                self.unit(),
                systemctl(&["status", "--full", "--lines=20", &self.unit()]).1
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Asks it for the first time.
    fn first(&mut self) -> Result<Reading> {
        let console = self.console()?;
        let ready = console.reply(WITHIN)?;
        ensure!(ready.starts_with("READY"), "{} said {ready:?} first", self.name);
        let reading = console.status()?;
        self.known = console.kernel_messages();
        self.last = Some((Answer::of(&reading, self.khz), CountedOn::Tsc));
        Ok(reading)
    }

    /// Asks it; it must be the guest that was asked before, and have noticed nothing.
    pub fn goes_on(&mut self, drift: Duration) -> Result<Vec<String>> {
        let console = self.console()?;
        let (reading, stream) = (console.status()?, console.stats());
        let mut wrong = self.wrong(&reading.status, &console.kernel_messages());
        let now = Answer::of(&reading, self.khz);
        if let Some((last, by)) = &self.last {
            let (least, most) = now.since(last, *by);
            let guest = Duration::from_nanos(now.monotonic.saturating_sub(last.monotonic));
            let drift = drift + most / CALIBRATION;
            if now.monotonic < last.monotonic {
                wrong.push(format!("{} was booted anew", self.name));
            } else if guest + drift < least || guest > most + drift {
                wrong.push(format!("{}'s clock went on by {guest:?} in {least:?} to {most:?}", self.name));
            }
        }
        for (count, what) in
            [(stream.lost, "lost"), (stream.repeated, "repeated"), (stream.damaged, "damaged")]
        {
            if count != 0 {
                wrong.push(format!("{count} lines of {}'s console were {what}", self.name));
            }
        }
        self.last = Some((now, CountedOn::Tsc));
        Ok(wrong)
    }

    /// Follows it from its beginning, in a unit that was started just now.
    pub fn follow(&mut self) -> Result<()> {
        let (socket, log) = (paths::serial(self.name), paths::console_log(self.name));
        self.console = Some(Console::connect(&socket, &log)?);
        self.wait_until_active()?;
        self.first().map(drop)
    }

    /// What is wrong with it, if it was booted anew since then.
    pub fn began_anew(&self, began: Instant) -> Result<Vec<String>> {
        let console = self.console()?;
        let reading = console.status()?;
        let mut wrong = self.wrong(&reading.status, &console.kernel_messages());
        let up = Duration::from_nanos(reading.status.monotonic);
        if up > reading.answered.saturating_duration_since(began) {
            wrong.push(format!("{} has been up for {up:?}, and was not booted anew", self.name));
        }
        Ok(wrong)
    }

    fn wrong(&self, status: &Status, messages: &[String]) -> Vec<String> {
        let mut wrong = Vec::new();
        let disks = status.disks.iter().map(|disk| (disk.disk.as_str(), disk.errors, &disk.first));
        let checks = [("memory", &status.memory), ("registers", &status.registers)];
        let checks = checks.iter().map(|(what, checked)| (*what, checked.errors, &checked.first));
        for (what, errors, first) in checks.chain(disks) {
            if errors != 0 {
                let first = first.as_deref().unwrap_or("unknown");
                wrong.push(format!("{}'s {what} was wrong {errors} times, first: {first}", self.name));
            }
        }
        for clock in status.clocks.iter().filter(|clock| clock.own_steps + clock.cross_steps != 0) {
            wrong
                .push(format!("{}'s {} clock stepped back by up to {}", self.name, clock.clock, clock.worst));
        }
        wrong.extend(
            messages
                .iter()
                .filter(|message| !self.known.contains(message))
                .map(|message| format!("{}'s kernel says: {message}", self.name)),
        );
        wrong
    }

    /// What was seen of it, once its process has ended.
    pub fn end(self) -> Result<Seen> {
        let (answer, _) = self.last.context("it was never asked")?;
        Ok(Seen { heard: self.console()?.heard_all()?, answer, known: self.known })
    }

    /// Whether its process is connected still.
    pub fn is_connected(&self) -> bool {
        self.console.as_ref().is_some_and(Console::is_connected)
    }
}
