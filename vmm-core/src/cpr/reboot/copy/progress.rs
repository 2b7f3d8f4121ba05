//! How far copying is.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::chunk::CHUNK;

/// Told how many bytes of RAM are done, and of how many, by any thread, after each chunk.
pub type Told<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// Counts what is done.
pub(super) struct Progress<'a> {
    done: AtomicU64,
    total: u64,
    told: Told<'a>,
}

impl<'a> Progress<'a> {
    pub(super) fn of(total: u64, told: Told<'a>) -> Self {
        told(0, total);
        Self { done: AtomicU64::new(0), total, told }
    }

    pub(super) fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Relaxed) + bytes;
        (self.told)(done, self.total);
    }
}

/// Says it in the log, at each tenth.
pub(super) fn log_tenths(done: u64, total: u64) {
    if let Some(tenth) = tenth(done, done.saturating_sub(CHUNK), total) {
        tracing::info!("reading RAM: {tenth}0% of {} MiB", total >> 20);
    }
}

/// Which tenth is behind by what is done, where it was not before so many bytes.
fn tenth(done: u64, before: u64, total: u64) -> Option<u64> {
    let of = |done: u64| (u128::from(done) * 10).checked_div(total.into()).unwrap_or(0) as u64;
    (of(done) > of(before)).then(|| of(done))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn what_is_told_begins_with_nothing_and_ends_with_all() {
        let seen = Mutex::new(Vec::new());
        let told = |done, total| seen.lock().unwrap().push((done, total));
        let progress = Progress::of(30, &told);
        (0..3).for_each(|_| progress.add(10));
        assert_eq!(*seen.lock().unwrap(), [(0, 30), (10, 30), (20, 30), (30, 30)]);
    }

    #[test]
    fn each_tenth_is_told_once() {
        let total = 25 << 20;
        let tenths = (1..=25).filter_map(|chunk| tenth(chunk << 20, (chunk - 1) << 20, total));
        assert_eq!(tenths.collect::<Vec<_>>(), (1..=10).collect::<Vec<_>>());
        assert_eq!(tenth(5, 5, 0), None);
        assert_eq!(tenth(u64::MAX, 0, u64::MAX), Some(10));
    }
}
