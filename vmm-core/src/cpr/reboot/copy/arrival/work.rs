//! The threads that RAM comes in by: one serves whoever waits for a page, the others read all of it.

use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use super::{Chunk, Inner, Lost, Shared, Stage, Taken, Wait};
use crate::cpr::reboot::copy::chunk::{CHUNK, data};
use crate::cpr::reboot::copy::progress::Progress;
use crate::cpr::reboot::copy::read::{Copied, Tools};
use crate::cpr::reboot::copy::{CopyError, processors};
use crate::machine::in_background;
use crate::memory::MissingPages;

/// What the threads work with; it ends with them.
pub(super) struct Work {
    pub(super) shared: Arc<Shared>,
    pub(super) copied: Arc<Copied>,
    pub(super) pages: MissingPages,
    /// Bytes of RAM.
    pub(super) ram: u64,
    pub(super) progress: Progress<'static>,
    pub(super) lost: Lost,
}

impl Work {
    /// Serves whoever waits for a page, until nobody will any more.
    pub(super) fn serve(&self) {
        let served = Tools::new().and_then(|mut tools| {
            loop {
                self.answer_all(&mut tools)?;
                let waiting = self.pages.wait(self.shared.end.as_fd());
                if !waiting.map_err(CopyError::io("waiting for who waits for RAM"))? {
                    return Ok(());
                }
            }
        });
        if let Err(error) = served {
            self.failed(error);
        }
    }

    /// Once the guest runs, reads all that is left.
    pub(super) fn fill(&self, serving: JoinHandle<()>) {
        let waits = |inner: &mut Inner| matches!(inner.stage, Stage::Loading | Stage::Claimed);
        let waited = self.shared.changed.wait_while(self.shared.lock(), waits);
        let runs = matches!(waited.unwrap_or_else(PoisonError::into_inner).stage, Stage::Running);
        let began = Instant::now();
        let filled = if runs { in_background(|| self.fill_all()) } else { Err(CopyError::Cancelled) };
        match filled {
            // One that is read for who waits for it may be on its way still.
            Ok(()) => self.shared.end(),
            Err(CopyError::Cancelled) => {}
            Err(error) => self.failed(error),
        }
        if serving.join().is_err() {
            let panicked = std::io::Error::other("its thread panicked");
            self.failed(CopyError::io("serving who waits for RAM")(panicked));
        }
        self.complete(began);
    }

    fn fill_all(&self) -> Result<(), CopyError> {
        let all: Vec<usize> = (0..self.copied.chunks().len()).collect();
        processors::each(&all, &Tools::new, &|index, tools| {
            if !matches!(self.shared.lock().stage, Stage::Running) {
                return Err(CopyError::Cancelled);
            }
            self.answer_all(tools)?;
            match self.shared.take(*index, None) {
                Taken::Ours => self.bring(*index, tools),
                Taken::Another | Taken::Here => Ok(()),
            }
        })
    }

    /// If all has come, says so: nothing is missing any more.
    fn complete(&self, began: Instant) {
        let mut inner = self.shared.lock();
        let all = inner.chunks.iter().all(|chunk| matches!(chunk, Chunk::Here));
        if !all || !matches!(inner.stage, Stage::Running) {
            return;
        }
        if let Err(error) = self.pages.release() {
            drop(inner);
            return self.failed(CopyError::io("letting go of RAM that is all there")(error));
        }
        if let Some(then) = inner.then.take() {
            then();
        }
        inner.stage = Stage::Complete;
        tracing::info!(
            "all of the guest's RAM is there, {} MiB after {} ms; {} times it was waited for, at most for {} ms",
            inner.total >> 20,
            began.elapsed().as_millis(),
            inner.waits,
            inner.longest.as_millis()
        );
        drop(inner);
        self.shared.changed.notify_all();
    }

    /// Answers everybody who waits for a page now.
    fn answer_all(&self, tools: &mut Tools) -> Result<(), CopyError> {
        let next = || self.pages.next().map_err(CopyError::io("reading who waits for RAM"));
        while let Some(page) = next()? {
            let wait = Wait { page, since: Instant::now() };
            let index = page / CHUNK;
            let found = self.copied.chunks().binary_search_by_key(&index, |chunk| chunk.index.into());
            match found.map(|index| (index, self.shared.take(index, Some(wait)))) {
                Ok((index, Taken::Ours)) => self.bring(index, tools)?,
                Ok((_, Taken::Another)) => {}
                // Zeros that the file has not, or what the guest has given back since.
                Ok((_, Taken::Here)) | Err(_) => self.answer(wait)?,
            }
        }
        Ok(())
    }

    /// Puts in what a chunk has, and answers who has come to wait for one of its pages meanwhile.
    fn bring(&self, index: usize, tools: &mut Tools) -> Result<(), CopyError> {
        let chunk = &self.copied.chunks()[index];
        let bytes = self.copied.unpack(chunk, self.ram, tools)?;
        for (at, run) in data(bytes, chunk.at()) {
            self.pages.put(at, run).map_err(CopyError::io(format!("filling RAM at {at:#x}")))?;
        }
        let bytes = bytes.len() as u64;
        for wait in self.shared.has_come(index, bytes) {
            self.answer(wait)?;
        }
        self.progress.add(bytes);
        Ok(())
    }

    /// Has whoever waits for a page go on: it is there, or it is zeros.
    fn answer(&self, wait: Wait) -> Result<(), CopyError> {
        let doing = format!("filling RAM at {:#x} with zeros", wait.page);
        self.pages.put_zeros(wait.page).map_err(CopyError::io(doing))?;
        let mut inner = self.shared.lock();
        inner.waits = inner.waits.saturating_add(1);
        inner.longest = inner.longest.max(wait.since.elapsed());
        Ok(())
    }

    /// Some of it cannot be had.
    fn failed(&self, error: CopyError) {
        let mut inner = self.shared.lock();
        match inner.stage {
            Stage::Loading => {
                inner.stage = Stage::Refused(Some(error));
                drop(inner);
                if let Err(error) = self.pages.release() {
                    tracing::error!("letting go of who waits for RAM: {error}");
                }
                self.shared.end();
            }
            Stage::Claimed | Stage::Running => {
                drop(inner);
                (self.lost)(&error);
            }
            Stage::Refused(_) | Stage::Complete | Stage::Over => {}
        }
    }
}
