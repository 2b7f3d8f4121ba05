//! What can go wrong with a live update.

use std::io;

/// Why a guest's memory could not be preserved, or found.
#[derive(Debug, thiserror::Error)]
pub enum LiveUpdateError {
    /// The kernel has no orchestrator.
    #[error(
        "/dev/liveupdate cannot be opened: {source}; it takes Linux 7.0 or newer with CONFIG_LIVEUPDATE and CONFIG_LIVEUPDATE_MEMFD, and \
         kho=on liveupdate=on on its command line"
    )]
    None {
        /// What the kernel answered.
        source: io::Error,
    },
    /// Others have it open all the time.
    #[error("/dev/liveupdate: another process has it open, and has kept it for {seconds} s")]
    Busy {
        /// How long it was waited for.
        seconds: u64,
    },
    /// No session can have the name.
    #[error(
        "no live update session can be called after '{name}': expected letters, digits, '-', '_' and '.', {most} of them at most"
    )]
    Name {
        /// The guest's name.
        name: String,
        /// How long one may be.
        most: usize,
    },
    /// There is a guest of that name.
    #[error(
        "a guest that was saved waits as luo:{name} already: load it (cpr-load resume --from luo:{name}); only to give it up, boot \
         with --discard-saved, or kill its keeper (SIGKILL)"
    )]
    Waiting {
        /// The guest's name.
        name: String,
    },
    /// There is no guest of that name.
    #[error(
        "no guest waits as luo:{name}: no keeper of it runs, and the kernel before this one has left no session '{session}' that nobody has \
         taken. It was not saved, or was loaded, or its keeper had ended by the time of the kexec, or that was not by kexec_file_load(2) \
         (kexec -s)"
    )]
    Nothing {
        /// The guest's name.
        name: String,
        /// The session's.
        session: String,
    },
    /// The keeper has ended before it was asked.
    #[error("the keeper of luo:{name} has ended meanwhile, or lets nobody in: try again")]
    Gone {
        /// The guest's name.
        name: String,
    },
    /// The keeper sent something else than a guest's memory.
    #[error(
        "the keeper of luo:{name} sent {found} descriptors; expected those of a guest's state and of its RAM"
    )]
    Sent {
        /// The guest's name.
        name: String,
        /// How many.
        found: usize,
    },
    /// A system call failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, to what.
        doing: String,
        /// What the kernel answered.
        source: io::Error,
    },
}

impl LiveUpdateError {
    pub(super) fn io<E: Into<io::Error>>(doing: impl Into<String>) -> impl FnOnce(E) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source: source.into() }
    }
}
