//! SIGINT and SIGTERM, asked for instead of suffered.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// The signals that mean: stop what you do. Each clone sees all of them.
#[derive(Clone)]
pub struct Signals {
    fd: Arc<SignalFd>,
    came: Arc<AtomicU32>,
    seen: Cell<u32>,
}

impl Signals {
    /// Blocks the signals, so that [`Self::arrived`] sees them. To be called before any thread is started.
    pub fn block() -> anyhow::Result<Self> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGINT);
        set.add(Signal::SIGTERM);
        set.thread_block().context("blocking signals")?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let fd = SignalFd::with_flags(&set, flags).context("watching signals")?;
        Ok(Self { fd: Arc::new(fd), came: Arc::default(), seen: Cell::new(0) })
    }

    /// Whether any came.
    pub fn came(&self) -> bool {
        self.take();
        self.came.load(SeqCst) != 0
    }

    fn take(&self) {
        if matches!(self.fd.read_signal(), Ok(Some(_))) {
            self.came.fetch_add(1, SeqCst);
        }
    }

    /// Whether one came since the last time.
    pub fn arrived(&self) -> bool {
        self.take();
        let came = self.came.load(SeqCst);
        self.seen.replace(came) != came
    }
}
