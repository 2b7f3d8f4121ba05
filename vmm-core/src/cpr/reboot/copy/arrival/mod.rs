//! RAM out of the file while the guest runs on it.
//!
//! 1. Whoever touches a page that is not there waits until its chunk was read, found right and unpacked: nobody ever finds another byte
//!    than what was saved.
//! 2. Until the guest is claimed only what is waited for is read. A chunk that cannot be had then refuses the guest ([`Arrival::claim`]),
//!    and lets go of who waits for it, who had no guest to run.
//! 3. Once it runs ([`Arrival::go`]) all of it is read, in order, by all processors; what is waited for comes first. A chunk that cannot be
//!    had then is the end of the guest ([`Lost`]): who waits for it waits for ever.
//! 4. When all is there nothing is left of it: no thread, no open file, no page that is waited for.
//!
//! Here is what all of it knows of each chunk; `work` is what its threads do.

mod work;

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use self::work::Work;
use super::CopyError;
use super::progress::{Progress, log_tenths};
use super::read::Copied;
use crate::memory::MissingPages;

/// Called when RAM of a guest that runs cannot be had. It must see to it that the guest is not heard of any more, and should not return.
pub type Lost = Arc<dyn Fn(&CopyError) + Send + Sync>;

/// What waits until all of the RAM is there. It is called with that, and must not ask for it.
pub type Then = Box<dyn FnOnce() + Send>;

/// Between two looks at whether somebody still wants to wait.
const LOOK: Duration = Duration::from_millis(20);

/// RAM that comes in. Dropped, it comes in no more, and who waits for a page finds zeros: by then nobody may run the guest.
pub struct Arrival {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What its threads and whoever asks share.
struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
    /// Can be read when nothing is waited for any more.
    end: OwnedFd,
}

struct Inner {
    stage: Stage,
    /// Called when all is there.
    then: Option<Then>,
    /// In the order in which they are in the state.
    chunks: Vec<Chunk>,
    here: u64,
    total: u64,
    waits: u32,
    longest: Duration,
}

#[derive(Debug)]
enum Stage {
    /// The guest is its file's still.
    Loading,
    /// It was not to be had, and the guest is its file's.
    Refused(Option<CopyError>),
    /// The guest is this process's.
    Claimed,
    /// It runs, or may.
    Running,
    /// All is there.
    Complete,
    /// There is no guest any more.
    Over,
}

impl Stage {
    fn refused(&mut self) -> Option<CopyError> {
        let Self::Refused(why) = self else { return None };
        Some(why.take().unwrap_or(CopyError::Cancelled))
    }
}

#[derive(Debug, Default)]
enum Chunk {
    #[default]
    Stored,
    /// Somebody reads it; who waits for a page of it meanwhile, and since when.
    Coming(Vec<Wait>),
    Here,
}

/// Somebody who waits for a page.
#[derive(Debug, Clone, Copy)]
struct Wait {
    page: u64,
    since: Instant,
}

impl Arrival {
    /// Has `ram` bytes of RAM come in where pages are missing, for now only what is waited for.
    pub fn begin(copied: Arc<Copied>, pages: MissingPages, ram: u64, lost: Lost) -> Result<Self, CopyError> {
        let total = copied.bytes(ram)?;
        let end = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|error| CopyError::io("making an eventfd")(error.into()))?;
        let chunks = copied.chunks().iter().map(|_| Chunk::default()).collect();
        let (stage, then) = (Stage::Loading, None);
        let inner = Inner { stage, then, chunks, here: 0, total, waits: 0, longest: Duration::ZERO };
        let shared = Arc::new(Shared { inner: Mutex::new(inner), changed: Condvar::new(), end: end.into() });
        let progress = Progress::of(total, &log_tenths);
        let work = Arc::new(Work { shared: Arc::clone(&shared), copied, pages, ram, progress, lost });
        let start = |name: &str, run: Box<dyn FnOnce() + Send>| {
            thread::Builder::new().name(name.into()).spawn(run).map_err(CopyError::io("starting a thread"))
        };
        let mut arrival = Self { shared, thread: None };
        let waited_for = Arc::clone(&work);
        let first = start("ram-faults", Box::new(move || waited_for.serve()))?;
        arrival.thread = Some(start("ram", Box::new(move || work.fill(first)))?);
        Ok(arrival)
    }

    /// Has this called once, before anybody hears that all is there.
    pub fn then(&self, then: Then) {
        self.shared.lock().then = Some(then);
    }

    /// To be asked just before the guest is claimed: from then on what cannot be had is lost. An error is why the guest must not be.
    pub fn claim(&self) -> Result<(), CopyError> {
        let mut inner = self.shared.lock();
        if let Some(why) = inner.stage.refused() {
            return Err(why);
        }
        inner.stage = Stage::Claimed;
        Ok(())
    }

    /// Why the guest must not be claimed, if that is known by now; once.
    pub fn refused(&self) -> Option<CopyError> {
        self.shared.lock().stage.refused()
    }

    /// The guest runs: has the rest come in.
    pub fn go(&self) {
        let mut inner = self.shared.lock();
        inner.stage = Stage::Running;
        tracing::info!(
            "{} of {} MiB of the guest's RAM are there; the rest comes while it runs",
            inner.here >> 20,
            inner.total >> 20
        );
        drop(inner);
        self.shared.changed.notify_all();
    }

    /// How many bytes are there, and of how many, until all are.
    pub fn outstanding(&self) -> Option<(u64, u64)> {
        let inner = self.shared.lock();
        (!matches!(inner.stage, Stage::Complete)).then_some((inner.here, inner.total))
    }

    /// Waits until all is there, or until that is not wanted any more: `false`.
    pub fn wait(&self, cancelled: &dyn Fn() -> bool) -> bool {
        let mut inner = self.shared.lock();
        while !matches!(inner.stage, Stage::Complete) {
            if cancelled() {
                return false;
            }
            let waited = self.shared.changed.wait_timeout(inner, LOOK);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl fmt::Debug for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arrival({:?})", self.outstanding())
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.shared.over();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that the guest's RAM came in by panicked");
        }
    }
}

/// What becomes of a chunk that somebody asks for.
enum Taken {
    /// He reads it.
    Ours,
    /// Somebody else does.
    Another,
    /// It is there.
    Here,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody needs what has not come.
    fn over(&self) {
        let mut inner = self.lock();
        if !matches!(inner.stage, Stage::Complete | Stage::Refused(_)) {
            inner.stage = Stage::Over;
        }
        drop(inner);
        self.end();
    }

    /// Ends whoever waits for pages to be waited for, or for the guest to run.
    fn end(&self) {
        if let Err(error) = nix::unistd::write(&self.end, &1_u64.to_ne_bytes()) {
            tracing::error!("ending the threads that RAM comes in by: {error}");
        }
        self.changed.notify_all();
    }

    /// Whether the caller is to read a chunk. Where somebody else does, he answers who waits for a page of it; where it is there,
    /// whoever does is to be answered at once.
    fn take(&self, index: usize, wait: Option<Wait>) -> Taken {
        match &mut self.lock().chunks[index] {
            chunk @ Chunk::Stored => {
                *chunk = Chunk::Coming(wait.into_iter().collect());
                Taken::Ours
            }
            Chunk::Coming(waiting) => {
                waiting.extend(wait);
                Taken::Another
            }
            Chunk::Here => Taken::Here,
        }
    }

    /// A chunk is there: who waits for a page of it?
    fn has_come(&self, index: usize, bytes: u64) -> Vec<Wait> {
        let mut inner = self.lock();
        inner.here += bytes;
        match std::mem::replace(&mut inner.chunks[index], Chunk::Here) {
            Chunk::Coming(waiting) => waiting,
            Chunk::Stored | Chunk::Here => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
