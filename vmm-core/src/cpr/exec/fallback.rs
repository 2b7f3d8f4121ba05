//! The way back: the old binary, executed again with the same state.
//!
//! 1. Armed before anything else in the new image; disarmed only after the guest was claimed.
//! 2. Works from a signal handler: everything that it needs was made before.

use std::ffi::CString;
use std::os::fd::RawFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::command::Arrival;
use super::inherit;
use crate::cpr::report::monotonic_ns;

/// Tells the old binary why it is back.
const REASON: &str = "CPR_EXEC_FAILED";
/// The signals that end a process that has gone wrong, and the one that says that time is up.
const FATAL: [Signal; 6] =
    [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGABRT, Signal::SIGALRM];

struct Prepared {
    binary: RawFd,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    _words: Vec<CString>,
}

// SAFETY: the pointers lead into `_words`, which is never changed or dropped once it is in the static.
unsafe impl Send for Prepared {}
// SAFETY: as above; only read.
unsafe impl Sync for Prepared {}

static PREPARED: OnceLock<Prepared> = OnceLock::new();
static ARMED: AtomicBool = AtomicBool::new(false);

/// The way back, while there is one.
#[derive(Debug)]
pub struct Fallback {
    arrival: Arrival,
    before: Vec<(Signal, SigAction)>,
}

impl Fallback {
    /// Makes ready to go back. Does nothing where this is the old binary already.
    pub fn arm(arrival: Arrival) -> Self {
        let mut fallback = Self { arrival, before: Vec::new() };
        let Some(binary) = arrival.fallback else { return fallback };
        PREPARED
            .get_or_init(|| Prepared::new(binary, arrival, "it crashed or did not claim the guest in time"));
        ARMED.store(true, Ordering::SeqCst);
        let action = SigAction::new(SigHandler::Handler(fatal), SaFlags::SA_NODEFER, SigSet::empty());
        for signal in FATAL {
            // SAFETY: the handler only makes system calls, with memory that was prepared before.
            match unsafe { sigaction(signal, &action) } {
                Ok(before) => fallback.before.push((signal, before)),
                Err(error) => tracing::warn!("catching {signal}: {error}"),
            }
        }
        fallback
    }

    /// Goes back when `CLOCK_MONOTONIC` passes this many ns without a claim.
    pub fn bound(&self, deadline_ns: u64) {
        if self.arrival.fallback.is_some() {
            set_timer((deadline_ns.saturating_sub(monotonic_ns()) / 1000).max(1));
        }
    }

    /// There is no way back any more: the guest was claimed.
    pub fn disarm(&mut self) {
        ARMED.store(false, Ordering::SeqCst);
        set_timer(0);
        for (signal, before) in self.before.drain(..) {
            // SAFETY: puts back what was there.
            if let Err(error) = unsafe { sigaction(signal, &before) } {
                tracing::warn!("restoring {signal}: {error}");
            }
        }
        if let Some(binary) = self.arrival.fallback {
            inherit::close(binary);
        }
    }

    /// Executes the old binary with the same state. Returns only if there is none or it cannot be executed.
    pub fn go_back(&self, reason: &str) {
        let Some(binary) = self.arrival.fallback else { return };
        tracing::error!("{reason}; going back to the old binary");
        set_timer(0);
        let error = Prepared::new(binary, self.arrival, reason).execute();
        tracing::error!("executing the old binary again: {error}");
    }

    /// Why the new binary could not take the guest, where this is the old one again.
    pub fn reason() -> Option<String> {
        std::env::var(REASON).ok()
    }
}

impl Prepared {
    fn new(binary: RawFd, arrival: Arrival, reason: &str) -> Self {
        let back = Arrival { state: arrival.state, fallback: None };
        let argv = std::iter::once("cpr-load".to_owned()).chain(back.words());
        let envp = std::env::vars_os()
            .filter(|(key, _)| key != REASON)
            .map(|(key, value)| format!("{}={}", key.to_string_lossy(), value.to_string_lossy()))
            .chain(std::iter::once(format!("{REASON}={reason}")));
        // A word with a NUL in it can be neither an argument nor a variable: left out.
        let argv: Vec<CString> = argv.filter_map(|word| CString::new(word).ok()).collect();
        let envp: Vec<CString> = envp.filter_map(|word| CString::new(word).ok()).collect();
        let pointers = |words: &[CString]| {
            words.iter().map(|word| word.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
        };
        let (argv_pointers, envp_pointers) = (pointers(&argv), pointers(&envp));
        let words = argv.into_iter().chain(envp).collect();
        Self { binary, argv: argv_pointers, envp: envp_pointers, _words: words }
    }

    fn execute(&self) -> std::io::Error {
        // SAFETY: the arrays end in null and lead into strings that live as long as `self`.
        unsafe {
            libc::syscall(
                libc::SYS_execveat,
                self.binary,
                c"".as_ptr(),
                self.argv.as_ptr(),
                self.envp.as_ptr(),
                libc::AT_EMPTY_PATH,
            );
        }
        std::io::Error::last_os_error()
    }
}

extern "C" fn fatal(_signal: libc::c_int) {
    if ARMED.swap(false, Ordering::SeqCst)
        && let Some(prepared) = PREPARED.get()
    {
        set_timer(0);
        prepared.execute();
    }
    // SAFETY: ends the process; what else could be done was done.
    unsafe { libc::_exit(4) };
}

/// Arms the real-time timer (microseconds), or with 0 stops it.
fn set_timer(microseconds: u64) {
    let value = libc::timeval {
        tv_sec: (microseconds / 1_000_000) as libc::time_t,
        tv_usec: (microseconds % 1_000_000) as libc::suseconds_t,
    };
    let timer = libc::itimerval { it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 }, it_value: value };
    // SAFETY: `timer` is a valid itimerval; the old value is not asked for.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
}
