//! Numbers that look random, for moments nobody has thought of.

use std::time::SystemTime;

/// A small generator (xorshift). Its seed is that in the environment (`CPR_SEED`), or another each time.
pub struct Random {
    seed: u64,
    state: u64,
}

impl Random {
    /// One with a seed.
    pub fn seeded() -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let seed = number("CPR_SEED").unwrap_or_else(|| now.map_or(1, |now| now.as_nanos() as u64)) | 1;
        Self { seed, state: seed }
    }

    /// The next number, less than `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % bound
    }

    /// What is said of a round that failed, so that it can be had again.
    pub fn told(&self, round: u64) -> String {
        format!("round {round} with CPR_SEED={}", self.seed)
    }
}

/// How many processes are killed: that in the environment (`CPR_KILLS`), or so many.
pub fn kills(usual: u64) -> u64 {
    number("CPR_KILLS").unwrap_or(usual)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}
