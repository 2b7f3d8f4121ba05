//! Takes a guest through the steps of a scenario and writes down what is seen.

use std::convert::Infallible;
use std::process::{Child, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guest_init::status::Status;
use serde::{Deserialize, Serialize};
use vmm_core::cpr::report::PhaseTime;

use super::console::{Console, Reading};
use super::getty::Getty;
use super::host_log::HostLog;
use super::judge::loads;
use super::kexec::{self, Arrival, Mark, Progress, Rate};
use super::net::{self, Network};
use super::peer::STEP_MARK;
use super::report::{Report, StepReport};
use super::root::Patience;
use super::scenario::{Kernel, Mode, Scenario, Step};
use super::trouble::Trouble;
use super::vsock::Stream;

/// How long a getty may take to prompt. It waits a few seconds for all services to be started.
const PROMPT_WITHIN: Duration = Duration::from_secs(90);
/// How long the host may take to go into another kernel.
const GOES_WITHIN: Duration = Duration::from_mins(1);
/// How long a guest's load may take to show something; the judge says where it did not.
const SHOWS_WITHIN: Duration = Duration::from_mins(1);
/// How long a guest is watched after each handover.
const SETTLE: Duration = Duration::from_secs(1);

/// What a handover said of itself. Times are in milliseconds.
#[derive(Debug, Clone)]
pub struct HandOver {
    /// The downtime reported.
    pub downtime: Option<f64>,
    /// From the command's start to its end.
    pub total: f64,
    /// The steps reported.
    pub phases: Vec<PhaseTime>,
}

/// What was seen before a step.
#[derive(Debug, Clone)]
pub struct Begun {
    disconnects: u64,
    before: Reading,
}

/// The same for a host's next kernel: its times by the TSC.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kept {
    disconnects: u64,
    asked: Mark,
    answered: Mark,
    status: Status,
}

impl Begun {
    fn keep(self, rate: &Rate) -> Kept {
        let Self { disconnects, before: Reading { asked, answered, status } } = self;
        let khz = rate.khz();
        Kept { disconnects, asked: Mark::at(asked, khz), answered: Mark::at(answered, khz), status }
    }
}

impl Kept {
    fn begun(self) -> Begun {
        let Self { disconnects, asked, answered, status } = self;
        Begun {
            disconnects,
            before: Reading { asked: asked.instant(), answered: answered.instant(), status },
        }
    }
}

/// A machine that runs the guest.
pub trait Machine {
    /// Waits for the machine of another guest that does the same, if there is one.
    fn meet(&mut self) -> Result<()> {
        Ok(())
    }
    /// Hands the guest over, when the other is to be, too.
    fn hand_over(&mut self, mode: Mode) -> Result<HandOver>;
    /// Saves the guest for the host's next kernel, and another that does the same.
    fn save(&mut self) -> Result<()>;
    /// Whether it does what is done once for both.
    fn leads(&self) -> bool {
        true
    }
    /// The guest's name.
    fn name(&self) -> &'static str;
    /// Begins to hand the guest over, and has it come back when it is stopped and saved.
    fn roll_back(&mut self) -> Result<HandOver>;
    /// Sees handovers refused for a trouble that is made and ended; says for how long the guest may have stood still.
    fn refuse(&mut self, trouble: Trouble) -> Result<Duration>;
    /// Has the host ask for its first assigned device back, and hears it.
    fn wanted(&mut self) -> Result<()>;
    /// Has an assigned device fail, and sees its guest stopped for it; ends the guest.
    fn failed(&mut self) -> Result<()>;
    /// Has the source die when it has sent the guest's state; says for how long the guest may have stood still.
    fn orphan(&mut self) -> Result<Duration>;
    /// Asks the guest to keep so many bytes of its RAM, and waits until it does.
    fn balloon(&mut self, bytes: u64) -> Result<()>;
    /// Pauses the guest.
    fn stop(&mut self) -> Result<()>;
    /// Lets a paused guest go on.
    fn cont(&mut self) -> Result<()>;
    /// Waits until the guest sleeps.
    fn sleeps(&mut self) -> Result<()>;
    /// Wakes a guest that sleeps.
    fn wake(&mut self) -> Result<()>;
    /// Waits until a guest that slept was woken by something else.
    fn wakes(&mut self) -> Result<()>;
    /// Whether the machine says that its guest is paused.
    fn is_paused(&self) -> Result<bool>;
    /// Waits for the machine to end in order; fails if it ends otherwise.
    fn ended(&mut self, within: Duration) -> Result<bool>;
    /// Open descriptors of the process that owns the guest.
    fn descriptors(&self) -> Option<u64>;
    /// KiB of RAM that count as locked by it.
    fn locked(&self) -> Option<u64>;
}

/// Makes all steps, or those from the one on in which the host came into this kernel; whatever stops them is in the report.
pub fn run(
    scenario: &Scenario,
    machine: &mut dyn Machine,
    console: &Console,
    getty: Option<&Getty>,
    host_log: Option<&mut HostLog>,
    arrival: Option<Arrival>,
) -> Report {
    let (report, messages_before) = arrival.as_ref().map_or_else(Default::default, |arrival| {
        (arrival.progress.report.clone(), arrival.progress.messages_before)
    });
    let mut run = Run {
        machine,
        console,
        getty,
        host_log,
        patience: Patience::with(scenario.guest.root),
        suspends: scenario.guest.agent,
        load: &scenario.guest.load,
        network: None,
        vsock: None,
        rate: Rate::begin(),
        report,
        messages_before,
    };
    if let Err(error) = run.all(scenario, arrival) {
        run.report.stopped_by = Some(format!("{error:#}"));
    }
    if !run.report.powered_off {
        run.take_stats();
    }
    let mut report = run.report;
    report.messages_before = console.kernel_messages();
    if let Some(count) = run.messages_before {
        report.messages_after = report.messages_before.split_off(count);
    }
    report
}

struct Run<'a> {
    machine: &'a mut dyn Machine,
    console: &'a Console,
    /// Of a guest with a userland of its own.
    getty: Option<&'a Getty>,
    /// Of a host with assigned devices.
    host_log: Option<&'a mut HostLog>,
    patience: Patience,
    /// The guest is suspended to be saved.
    suspends: bool,
    /// What the guest is put under.
    load: &'a [String],
    network: Option<Network>,
    vsock: Option<Stream>,
    rate: Rate,
    report: Report,
    /// How many kernel messages there were when the first handover began.
    messages_before: Option<usize>,
}

impl Run<'_> {
    fn all(&mut self, scenario: &Scenario, mut arrival: Option<Arrival>) -> Result<()> {
        let first = arrival.as_ref().map_or(0, |arrival| arrival.progress.step);
        if arrival.is_none() {
            self.come_up(scenario)?;
        }
        let mut next = scenario.host.iter().flat_map(|host| &host.next).copied();
        let steps = scenario.steps.iter().flat_map(|step| step.expand());
        for (index, step) in steps.enumerate() {
            let kernel = if step == Step::Kexec { next.next() } else { None };
            if index < first {
                continue;
            }
            let report = match (arrival.take(), kernel) {
                (Some(arrival), _) => self.arrive(arrival),
                (None, Some(kernel)) => match self.leave(index, kernel) {
                    Err(error) => Err(error),
                },
                (None, None) => self.step(step),
            };
            let report = report.with_context(|| format!("step '{step}'"))?;
            println!(
                "{:<16} downtime {} gap {:7.1} ms drift {:+.1} ms",
                report.step,
                report.downtime.map_or("       -   ".into(), |ms| format!("{ms:7.1} ms")),
                report.gap(),
                report.drift
            );
            self.report.steps.push(report);
            if scenario.is_bridged() {
                println!("{STEP_MARK}{step}");
            }
            if step != Step::PowerOff {
                // A device that is opened afresh is reset, which the host's kernel says.
                let renewed = self.suspends && matches!(step, Step::Kexec | Step::HandOver(Mode::Reboot));
                let which = if renewed { HostLog::faults } else { HostLog::all };
                self.take_host_messages(&step.to_string(), which);
            }
        }
        Ok(())
    }

    /// Waits for the guest, and begins what is done with it all the time.
    fn come_up(&mut self, scenario: &Scenario) -> Result<()> {
        self.boot()?;
        println!("guest is up");
        self.machine.meet()?;
        self.take_host_messages("boot", HostLog::faults);
        if let Some(getty) = self.getty {
            getty.first_prompt(PROMPT_WITHIN)?;
            println!("guest prompts for a login");
        }
        self.console.start_pinging();
        if scenario.guest.net.is_some() && !scenario.is_bridged() {
            self.network = Some(Network::start(net::PING_EVERY)?);
        }
        if scenario.guest.vsock {
            self.vsock = Some(Stream::start()?);
        }
        Ok(())
    }

    fn boot(&mut self) -> Result<()> {
        let within = self.patience.boot;
        let deadline = Instant::now() + within;
        loop {
            match self.console.reply(Duration::from_millis(200)) {
                Ok(reply) if reply.starts_with("READY") => return Ok(()),
                Ok(reply) => bail!("the guest said {reply:?} before READY"),
                Err(_) if Instant::now() > deadline => {
                    bail!("the guest did not come up within {within:?}")
                }
                Err(_) => {}
            }
            if self.machine.ended(Duration::ZERO)? {
                bail!("its machine ended before the guest was up");
            }
        }
    }

    /// Saves the guest and goes into another kernel; what is left to do is that one's.
    fn leave(&mut self, step: usize, kernel: Kernel) -> Result<Infallible> {
        let begun = self.begin(Step::Kexec)?;
        self.console.finish_pinging()?;
        self.machine.meet()?;
        let now = |rate: &Rate| Mark::now(rate.khz());
        let started = now(&self.rate);
        self.machine.save()?;
        let saved = now(&self.rate);
        let heard = self.console.heard_all()?;
        let (report, messages_before) = (self.report.clone(), self.messages_before);
        let begun = begun.keep(&self.rate);
        let progress = Progress { step, begun, report, messages_before, heard, started, saved };
        kexec::keep_progress(self.machine.name(), &progress)?;
        self.machine.meet()?;
        if self.machine.leads() {
            return kexec::go(kernel);
        }
        thread::sleep(GOES_WITHIN);
        bail!("the host did not go into its next kernel within {GOES_WITHIN:?}")
    }

    /// Goes on with a guest that was loaded in this kernel.
    fn arrive(&mut self, arrival: Arrival) -> Result<StepReport> {
        let handed_over = arrival.handed_over();
        self.console.start_pinging();
        let asleep = if self.suspends {
            Duration::from_secs_f64(handed_over.total / 1e3) + SETTLE
        } else {
            Duration::ZERO
        };
        self.finish(Step::Kexec, arrival.progress.begun.begun(), asleep, Some(handed_over))
    }

    fn begin(&mut self, step: Step) -> Result<Begun> {
        let disconnects = self.disconnects();
        if matches!(
            step,
            Step::RollBack
                | Step::Orphan
                | Step::Refused(_)
                | Step::Kexec
                | Step::Sleep(_)
                | Step::Alarm(_)
                | Step::Typed
        ) {
            self.messages_before.get_or_insert(self.console.kernel_messages().len());
        }
        self.console.command("GAP RESET")?;
        let before = self.console.status()?;
        if let Some(network) = &self.network {
            network.take();
        }
        if let Some(vsock) = &self.vsock {
            vsock.take();
        }
        Ok(Begun { disconnects, before })
    }

    fn step(&mut self, step: Step) -> Result<StepReport> {
        let begun = self.begin(step)?;
        let mut paused = Duration::ZERO;
        let handed_over = match step {
            Step::Run(time) => {
                thread::sleep(time);
                None
            }
            Step::HandOver(mode) => {
                let handed_over = self.hand_over(mode)?;
                if self.suspends && mode == Mode::Reboot {
                    paused = Duration::from_secs_f64(handed_over.total / 1e3) + SETTLE;
                }
                Some(handed_over)
            }
            Step::Paused(mode) => {
                let since = Instant::now();
                let handed_over = self.paused(mode)?;
                paused = since.elapsed();
                Some(handed_over)
            }
            Step::Sleep(time) => {
                let since = Instant::now();
                self.sleep(time)?;
                paused = since.elapsed();
                None
            }
            Step::Alarm(time) => {
                let since = Instant::now();
                let handed_over = self.alarm(time)?;
                paused = since.elapsed();
                Some(handed_over)
            }
            Step::Typed => {
                let since = Instant::now();
                self.typed()?;
                paused = since.elapsed();
                None
            }
            Step::Balloon(mib) => {
                self.machine.balloon(mib << 20)?;
                None
            }
            Step::RollBack => Some(self.machine.roll_back()?),
            Step::Refused(trouble) => {
                if trouble == Trouble::Suspend {
                    self.console.command("AGENT LATE")?;
                }
                paused = self.machine.refuse(trouble)?;
                thread::sleep(SETTLE);
                None
            }
            Step::Wanted => {
                self.machine.wanted()?;
                None
            }
            Step::Orphan => {
                paused = self.machine.orphan()?;
                thread::sleep(SETTLE);
                None
            }
            Step::Mixed(_) | Step::Live(_) => bail!("a mixed step is expanded first"),
            Step::Kexec => bail!("there is no next kernel"),
            Step::PowerOff => {
                self.see_load()?;
                None
            }
            Step::Failed => None,
        };
        self.finish(step, begun, paused, handed_over)
    }

    fn finish(
        &mut self,
        step: Step,
        begun: Begun,
        paused: Duration,
        handed_over: Option<HandOver>,
    ) -> Result<StepReport> {
        let Begun { disconnects, before } = begun;
        if handed_over.is_some() {
            thread::sleep(SETTLE);
            if let Some(getty) = self.getty {
                getty.ask(PROMPT_WITHIN)?;
            }
        }
        self.hear();
        let after = self.console.status()?;
        let read = after.status.random.passes - before.status.random.passes;
        if before.status.random.passes != 0 && read == 0 {
            bail!("the guest's entropy device gave nothing any more");
        }
        let report = StepReport {
            step: step.to_string(),
            downtime: handed_over.as_ref().and_then(|done| done.downtime),
            total: handed_over.as_ref().map(|done| done.total),
            phases: handed_over.map(|done| done.phases).unwrap_or_default(),
            paused: milliseconds(paused),
            gaps: after.status.heartbeats.iter().map(|heartbeat| heartbeat.gap as f64 / 1e6).collect(),
            late: after.status.timer.late as f64 / 1e6,
            drift: drift(&before, &after, paused, |reading| reading.status.monotonic),
            wall_drift: drift(&before, &after, paused, |reading| reading.status.realtime),
            disk: after.status.disks.iter().map(|disk| disk.longest as f64 / 1e6).fold(0.0, f64::max),
            net: self.network.as_ref().map(Network::take),
            vsock: self.vsock.as_ref().map(Stream::take),
            disconnects: self.disconnects() - disconnects,
            descriptors: self.machine.descriptors(),
            locked: self.machine.locked(),
        };
        self.report.status = Some(after.status);
        match step {
            Step::PowerOff => self.power_off()?,
            Step::Failed => {
                self.console.finish_pinging()?;
                self.machine.failed()?;
            }
            _ => {}
        }
        Ok(report)
    }

    /// Waits until AF_VSOCK has said something since the step began: it may have been a short one.
    fn hear(&self) {
        let deadline = Instant::now() + SHOWS_WITHIN;
        while self.vsock.as_ref().is_some_and(|stream| !stream.is_heard()) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until each load has shown what it is for, at least once: a guest of few steps may not have come to that.
    fn see_load(&mut self) -> Result<()> {
        let deadline = Instant::now() + SHOWS_WITHIN;
        while Instant::now() < deadline {
            let status = self.console.status()?.status;
            let waits = |load: &str| self.load.iter().any(|on| on == load);
            if !loads(&status).iter().any(|(_, seen, load)| seen.passes == 0 && waits(load)) {
                break;
            }
            thread::sleep(SETTLE);
        }
        Ok(())
    }

    fn hand_over(&mut self, mode: Mode) -> Result<HandOver> {
        self.messages_before.get_or_insert(self.console.kernel_messages().len());
        // What is on its way into a guest whose sockets are closed is the client's to repeat.
        if mode == Mode::Reboot {
            self.console.finish_pinging()?;
        }
        let done = self.machine.hand_over(mode)?;
        if mode == Mode::Reboot {
            self.console.start_pinging();
        }
        Ok(done)
    }

    fn paused(&mut self, mode: Mode) -> Result<HandOver> {
        if mode == Mode::Reboot {
            self.console.finish_pinging()?;
        }
        self.machine.stop()?;
        let done = self.hand_over(mode)?;
        thread::sleep(SETTLE / 4);
        let lines = self.console.stats().lines;
        thread::sleep(SETTLE);
        if self.console.stats().lines != lines {
            bail!("the guest was paused before the handover and runs after it");
        }
        if !self.machine.is_paused()? {
            bail!("the guest does not run, but its machine does not say that it is paused");
        }
        self.machine.cont()?;
        Ok(done)
    }

    fn sleep(&mut self, time: Duration) -> Result<()> {
        // What is on its way to a driver that stops is lost.
        self.console.finish_pinging()?;
        self.console.command("SLEEP")?;
        self.machine.sleeps()?;
        thread::sleep(time);
        let lines = self.console.stats().lines;
        thread::sleep(SETTLE);
        if self.console.stats().lines != lines {
            bail!("the guest sleeps and runs");
        }
        self.machine.wake()?;
        self.console.start_pinging();
        thread::sleep(SETTLE);
        Ok(())
    }

    fn alarm(&mut self, time: Duration) -> Result<HandOver> {
        let rang = self.console.command("RING")?;
        ensure!(rang == "RANG 1", "an alarm was set while the guest ran: {rang}");
        self.console.finish_pinging()?;
        let since = Instant::now();
        self.console.command(&format!("SLEEP {}", time.as_secs()))?;
        self.machine.sleeps()?;
        let done = self.machine.hand_over(Mode::Reboot)?;
        self.machine.wakes()?;
        // The guest counts from the beginning of a second.
        let slept = since.elapsed() + Duration::from_secs(1);
        ensure!(
            slept >= time,
            "the guest was woken after {slept:?}, and its alarm was to come after {time:?}"
        );
        self.speaks()?;
        self.console.start_pinging();
        Ok(done)
    }

    fn typed(&mut self) -> Result<()> {
        self.console.finish_pinging()?;
        self.console.command("SLEEP")?;
        self.machine.sleeps()?;
        self.console.press_return()?;
        thread::sleep(SETTLE);
        self.machine.sleeps().context("a guest that is not to be woken by its serial port")?;
        self.machine.wake()?;
        // Should Linux have kept what came, it is no command.
        let _ = self.console.reply(SETTLE);
        self.speaks()?;
        self.console.command("SLEEP TYPED")?;
        self.machine.sleeps()?;
        thread::sleep(SETTLE);
        self.machine.sleeps().context("a guest at whose serial port nothing came")?;
        // All of it is read, its first byte, too: without that it is no command.
        let answer = self.console.command("GAP RESET")?;
        ensure!(answer == "GAP RESET", "what was typed to wake the guest was not read whole: {answer}");
        self.machine.wakes()?;
        self.console.start_pinging();
        thread::sleep(SETTLE);
        Ok(())
    }

    /// Waits until a guest that was woken has started its serial port anew, which Linux empties then.
    fn speaks(&self) -> Result<()> {
        // What it had said before may come yet.
        thread::sleep(SETTLE);
        let (lines, deadline) = (self.console.stats().lines, Instant::now() + SHOWS_WITHIN);
        while self.console.stats().lines == lines {
            ensure!(
                Instant::now() < deadline,
                "the guest was woken, and says nothing within {SHOWS_WITHIN:?}"
            );
            thread::sleep(SETTLE / 10);
        }
        Ok(())
    }

    /// How often a client of one of the guest's consoles lost its connection.
    fn disconnects(&self) -> u64 {
        self.console.stats().reconnects + self.getty.map_or(0, Getty::disconnects)
    }

    fn take_stats(&mut self) {
        self.report.stream = self.console.stats();
        self.report.pings = self.console.pings();
    }

    fn take_host_messages(&mut self, step: &str, which: fn(&mut HostLog) -> Vec<String>) {
        let messages = self.host_log.as_mut().map(|log| which(log)).unwrap_or_default();
        self.report.host_messages.extend(messages.iter().map(|message| format!("{step}: {message}")));
    }

    fn power_off(&mut self) -> Result<()> {
        self.console.finish_pinging()?;
        if self.report.status.as_ref().is_some_and(|status| !status.disks.is_empty()) {
            self.console.command("FINISH")?;
            self.report.status = Some(self.console.status()?.status);
        }
        self.take_host_messages("the load's end", HostLog::all);
        // After the guest's last figures: it counts a connection that ends while it answers for a fault.
        (self.network, self.vsock) = (None, None);
        self.machine.meet()?;
        // The kernel's last word on the console is its own.
        self.take_stats();
        self.console.command("POWEROFF")?;
        self.report.powered_off = self.machine.ended(self.patience.power_off)?;
        Ok(())
    }
}

/// A duration in milliseconds.
pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// How far a guest's clock went on more or less than the host's, in milliseconds, beyond what the readings themselves
/// took. A guest that was paused on purpose may have its clock stopped meanwhile or not.
fn drift(before: &Reading, after: &Reading, paused: Duration, clock: fn(&Reading) -> u64) -> f64 {
    let least = milliseconds(after.asked.duration_since(before.answered).saturating_sub(paused));
    let most = milliseconds(after.answered.duration_since(before.asked));
    let guest = (clock(after) as f64 - clock(before) as f64) / 1e6;
    if guest < least { guest - least } else { (guest - most).max(0.0) }
}

/// Waits for a process to end.
pub fn exit(process: &mut Child, within: Duration) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + within;
    loop {
        let status = process.try_wait()?;
        if status.is_some() || Instant::now() > deadline {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
