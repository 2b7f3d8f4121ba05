//! Patterns in memory, written and verified without end.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use guest_init::status::Checked;

use crate::setup;

/// Words in a page.
const PAGE: usize = 512;
/// Words in a cache line.
const LINE: usize = 8;

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

/// Writes a slice of memory and verifies it, each time with another pattern, without end. One word of each cache line
/// is used: whatever is lost or changed in a guest's RAM is not less than that.
pub fn run(checks: &Checks, bytes: usize, cpu: usize) {
    setup::pin(cpu);
    let mut words = vec![0u64; bytes / 8 / PAGE * PAGE];
    for generation in 0u64.. {
        for (page, content) in words.chunks_exact_mut(PAGE).enumerate() {
            let (expected, next) = (pattern(page, generation), pattern(page, generation + 1));
            for (line, word) in content.iter_mut().step_by(LINE).enumerate() {
                if generation > 0 && *word != expected ^ line as u64 {
                    let found = *word;
                    checks.error(|| {
                        format!("cpu {cpu} page {page} line {line} generation {generation}: {found:#x} for {expected:#x}")
                    });
                }
                *word = next ^ line as u64;
            }
        }
        if generation > 0 {
            checks.pass();
        }
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
