//! Patterns in memory, written and verified without end.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use guest_init::status::Checked;

use crate::setup;

/// Words in a page.
const PAGE: usize = 512;

/// Passes and mismatches of something that is verified over and over.
#[derive(Default)]
pub struct Checks {
    passes: AtomicU64,
    errors: AtomicU64,
    first: OnceLock<String>,
}

impl Checks {
    /// One more pass is done.
    pub fn pass(&self) {
        self.passes.fetch_add(1, SeqCst);
    }

    /// Something was not what had been written.
    pub fn error(&self, what: impl FnOnce() -> String) {
        self.errors.fetch_add(1, SeqCst);
        self.first.get_or_init(what);
    }

    /// The figures so far.
    pub fn report(&self) -> Checked {
        Checked {
            passes: self.passes.load(SeqCst),
            errors: self.errors.load(SeqCst),
            first: self.first.get().cloned(),
        }
    }
}

/// What a word holds in a generation: no two pages and no two generations look alike.
fn pattern(page: usize, generation: u64) -> u64 {
    (page as u64 ^ generation << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Writes a slice of memory and verifies it, each time with another pattern, without end.
pub fn run(checks: &Checks, bytes: usize, cpu: usize) {
    setup::pin(cpu);
    let mut words = vec![0u64; bytes / 8 / PAGE * PAGE];
    let mut generation = 0u64;
    loop {
        for (page, content) in words.chunks_exact_mut(PAGE).enumerate() {
            let expected = if generation == 0 { 0 } else { pattern(page, generation) };
            let bad = if generation == 0 {
                content.iter().position(|word| *word != 0)
            } else {
                content.iter().zip(0u64..).position(|(word, at)| *word != expected ^ at)
            };
            if let Some(at) = bad {
                let found = content[at];
                checks.error(|| {
                    format!("cpu {cpu} page {page} word {at} generation {generation}: {found:#x}, expected base {expected:#x}")
                });
            }
            let next = pattern(page, generation + 1);
            for (word, at) in content.iter_mut().zip(0u64..) {
                *word = next ^ at;
            }
        }
        generation += 1;
        checks.pass();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_other_pages_and_generations_differ() {
        let mut seen: Vec<u64> =
            (0..64).flat_map(|page| (1..64).map(move |generation| pattern(page, generation))).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 64 * 63);
    }
}
