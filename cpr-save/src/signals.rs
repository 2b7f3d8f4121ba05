//! SIGINT and SIGTERM, asked for instead of suffered.

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// The signals that mean: stop what you do.
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks the signals, so that [`Self::arrived`] sees them. To be called before any thread is started.
    pub fn block() -> anyhow::Result<Self> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGINT);
        set.add(Signal::SIGTERM);
        set.thread_block().context("blocking signals")?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Self(SignalFd::with_flags(&set, flags).context("watching signals")?))
    }

    /// Whether one came since the last time.
    pub fn arrived(&self) -> bool {
        matches!(self.0.read_signal(), Ok(Some(_)))
    }
}
