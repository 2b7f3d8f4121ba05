//! All interleavings of source and target, by loom, with either side dying before each of its steps.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;

use super::word::{self, Word};

impl Word for AtomicU32 {
    fn load(&self) -> u32 {
        self.load(word::LOAD)
    }

    fn swap(&self, from: u32, to: u32) -> Result<(), u32> {
        self.compare_exchange(from, to, word::SWAP, word::LOAD).map(drop)
    }
}

/// A guest that cannot be entered twice at once: loom reports every access that is not ordered after the last.
struct Guest {
    word: AtomicU32,
    memory: UnsafeCell<u32>,
}

impl Guest {
    fn new() -> Arc<Self> {
        let guest = Self { word: AtomicU32::new(0), memory: UnsafeCell::new(0) };
        word::renew(&guest.word);
        Arc::new(guest)
    }

    /// Enters the guest, which changes its memory.
    fn run(&self) -> u32 {
        self.memory.with_mut(|memory| {
            // SAFETY: only the owner runs the guest; that this is so is what loom checks.
            unsafe {
                *memory += 1;
                *memory
            }
        })
    }
}

/// What a process lives to do: it dies before step number `steps`.
struct Life {
    steps: u32,
}

impl Life {
    fn step<T>(&mut self, step: impl FnOnce() -> T) -> Option<T> {
        self.steps = self.steps.checked_sub(1)?;
        Some(step())
    }
}

/// The source: runs the guest, offers it, and at some time wants it back. True if the guest is its own at the end.
fn source(guest: &Guest, mut life: Life) -> Option<bool> {
    life.step(|| guest.run())?;
    life.step(|| word::offer(&guest.word).unwrap())?;
    let back = life.step(|| word::take_back(&guest.word))?;
    if back.is_ok() {
        life.step(|| guest.run())?;
    }
    Some(back.is_ok())
}

/// The target: waits for no message, tries to claim, runs the guest. True if the guest is its own at the end.
fn target(guest: &Guest, offer: u32, mut life: Life) -> Option<bool> {
    let claimed = life.step(|| word::claim(&guest.word, offer))?;
    if claimed.is_ok() {
        life.step(|| guest.run())?;
    }
    Some(claimed.is_ok())
}

#[test]
fn at_most_one_runs_the_guest_and_one_does_whoever_dies_when() {
    const SOURCE_STEPS: u32 = 4;
    const TARGET_STEPS: u32 = 2;
    for (source_life, target_life) in (0..=SOURCE_STEPS).flat_map(|s| (0..=TARGET_STEPS).map(move |t| (s, t)))
    {
        loom::model(move || {
            let guest = Guest::new();
            let offer = word::current_offer(&guest.word).unwrap();
            let there = guest.clone();
            let thread = thread::spawn(move || target(&there, offer, Life { steps: target_life }));
            let ours = source(&guest, Life { steps: source_life });
            let theirs = thread.join().unwrap();
            assert!(ours != Some(true) || theirs != Some(true), "both own the guest");
            if source_life == SOURCE_STEPS && target_life == TARGET_STEPS {
                assert!(ours == Some(true) || theirs == Some(true), "nobody owns the guest");
            }
            if source_life == SOURCE_STEPS && target_life == 0 {
                assert_eq!(ours, Some(true), "a target that died before its claim took the guest with it");
            }
        });
    }
}

#[test]
fn of_two_targets_one_claims_and_the_source_then_cannot_take_back() {
    loom::model(|| {
        let guest = Guest::new();
        let offer = word::current_offer(&guest.word).unwrap();
        guest.run();
        word::offer(&guest.word).unwrap();
        let threads = [guest.clone(), guest.clone()]
            .map(|there| thread::spawn(move || target(&there, offer, Life { steps: 2 })));
        let ours = word::take_back(&guest.word).is_ok();
        if ours {
            guest.run();
        }
        let claims = threads.map(|thread| thread.join().unwrap() == Some(true));
        let owners = [ours, claims[0], claims[1]].into_iter().filter(|owns| *owns).count();
        assert_eq!(owners, 1);
    });
}

#[test]
fn of_two_threads_of_the_source_one_takes_back() {
    loom::model(|| {
        let guest = Guest::new();
        word::offer(&guest.word).unwrap();
        let take_back = |guest: Arc<Guest>| {
            let back = word::take_back(&guest.word).is_ok();
            if back {
                guest.run();
            }
            back
        };
        let there = guest.clone();
        let thread = thread::spawn(move || take_back(there));
        let here = take_back(guest);
        assert!(here ^ thread.join().unwrap());
    });
}

#[test]
fn a_claim_never_takes_a_later_offer_than_its_own() {
    loom::model(|| {
        let guest = Guest::new();
        let first = word::current_offer(&guest.word).unwrap();
        let there = guest.clone();
        let thread = thread::spawn(move || {
            // What the target knows of the guest is what it was at the first offer.
            word::claim(&there.word, first).is_ok().then(|| there.run())
        });
        guest.run();
        word::offer(&guest.word).unwrap();
        if word::take_back(&guest.word).is_ok() {
            guest.run();
            word::offer(&guest.word).unwrap();
        }
        if let Some(runs) = thread.join().unwrap() {
            assert_eq!(runs, 2, "the target runs a guest that has run on since its state was taken");
        }
    });
}

#[test]
fn a_cancel_that_succeeds_means_that_no_claim_did() {
    loom::model(|| {
        let guest = Guest::new();
        let offer = word::current_offer(&guest.word).unwrap();
        let there = guest.clone();
        let thread = thread::spawn(move || target(&there, offer, Life { steps: 2 }));
        let cancelled = word::cancel(&guest.word).is_ok();
        assert!(cancelled);
        guest.run();
        assert_eq!(thread.join().unwrap(), Some(false));
    });
}

#[test]
fn a_loader_that_saw_an_older_stamp_cannot_claim_a_later_save() {
    loom::model(|| {
        let guest = Guest::new();
        let generation = Arc::new(AtomicU32::new(1));
        let (there, stamp) = (guest.clone(), generation.clone());
        let loader = thread::spawn(move || {
            let offer = word::current_offer(&there.word).unwrap();
            let fits = stamp.load(Ordering::Acquire) == 1;
            (fits && word::claim(&there.word, offer).is_ok()).then(|| there.run())
        });
        // Saved as generation 1, run on, saved as generation 2.
        guest.run();
        generation.store(2, Ordering::Release);
        word::renew(&guest.word);
        word::offer(&guest.word).unwrap();
        assert_eq!(loader.join().unwrap(), None, "state of generation 1 was loaded with RAM of generation 2");
    });
}
