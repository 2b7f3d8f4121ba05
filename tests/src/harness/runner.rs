//! Runs the tests of a tier, and says aloud what could not run.
//!
//! 1. A test is passed, failed, or skipped with its reason; a skip is never counted as a pass.
//! 2. Where `CPR_REQUIRE` names the tier, a skip is a failure.
//! 3. A test that does not end at its bound ends the run, and with it every process that it started.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// What may be missing on a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// Needs nothing.
    Plain,
    /// Needs /dev/kvm.
    Kvm,
    /// Needs qemu-system-x86_64.
    Lab,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::Kvm => "kvm",
            Self::Lab => "lab",
        })
    }
}

impl Tier {
    /// Whether `CPR_REQUIRE` makes a skip a failure.
    pub fn required(self) -> bool {
        std::env::var("CPR_REQUIRE").is_ok_and(|tiers| tiers.split(',').any(|t| t.trim() == self.to_string()))
    }

    /// Why the tier cannot run here, if it cannot.
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Plain => None,
            Self::Kvm => kvm_ioctls::Kvm::new().err().map(|e| format!("/dev/kvm: {e}")),
            Self::Lab => super::qemu::version().err().map(|e| format!("{e:#}")),
        }
    }
}

/// The error of a test that cannot run here.
#[derive(Debug)]
pub struct Skipped(pub String);

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skipped {}

/// A test.
pub type TestFn = fn() -> anyhow::Result<()>;

/// The longest that one test may take.
const BOUND: Duration = Duration::from_mins(4);

/// Makes `main` of a test program from its tests: `tests!(Tier::Kvm, first, second)`.
#[macro_export]
macro_rules! tests {
    ($tier:expr, $($test:ident),+ $(,)?) => {
        fn main() -> std::process::ExitCode {
            $crate::harness::runner::run($tier, &[$((stringify!($test), $test)),+])
        }
    };
}

/// Runs the tests that the command line names (all, by default), one after the other.
pub fn run(tier: Tier, tests: &[(&str, TestFn)]) -> ExitCode {
    let (flags, names): (Vec<_>, Vec<_>) = std::env::args().skip(1).partition(|word| word.starts_with('-'));
    let exact = flags.iter().any(|flag| flag == "--exact");
    let matches = |test: &str, name: &String| if exact { test == name } else { test.contains(name.as_str()) };
    let chosen = tests.iter().filter(|(test, _)| names.is_empty() || names.iter().any(|n| matches(test, n)));
    if flags.iter().any(|flag| flag == "--list") {
        chosen.for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let missing = tier.missing();
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (name, test) in chosen {
        let started = Instant::now();
        let result = match &missing {
            Some(reason) => Err(Skipped(format!("tier {tier}: {reason}")).into()),
            None => bounded(name, *test),
        };
        let took = started.elapsed().as_secs_f32();
        match result {
            Ok(()) => {
                passed += 1;
                println!("test {name} ... ok ({took:.1} s)");
            }
            Err(error) if error.is::<Skipped>() => {
                skipped += 1;
                println!("test {name} ... SKIPPED ({error})");
            }
            Err(error) => {
                failed += 1;
                println!("test {name} ... FAILED ({took:.1} s)\n    {error:#}");
            }
        }
    }
    let refused = skipped > 0 && tier.required();
    let verdict = if failed == 0 && !refused { "ok" } else { "FAILED" };
    println!("\ntest result: {verdict}. tier {tier}: {passed} passed, {failed} failed, {skipped} skipped");
    if refused {
        println!("CPR_REQUIRE names {tier}: what is skipped there has failed");
    }
    if verdict == "ok" { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a test on this thread, since what it starts dies with the thread that started it.
fn bounded(name: &str, test: TestFn) -> anyhow::Result<()> {
    let (done, watched) = channel::<()>();
    let name = name.to_owned();
    let watchdog = std::thread::spawn(move || {
        if watched.recv_timeout(BOUND) == Err(RecvTimeoutError::Timeout) {
            println!("test {name} ... FAILED (not ended after {} s: giving up)", BOUND.as_secs());
            std::process::exit(101);
        }
    });
    let result = catch_unwind(AssertUnwindSafe(test));
    drop(done);
    let _ = watchdog.join();
    result.unwrap_or_else(|panic| Err(anyhow::anyhow!("panicked: {}", panic_text(panic.as_ref()))))
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}
