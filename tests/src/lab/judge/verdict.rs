//! What a run is found to be.

/// What the lab's own machine does to itself or to a guest about once an hour, handover or not (docs/limits.md), as it is found in
/// why a run stopped or in what a kernel says.
const OF_THE_MACHINE: [&str; 10] = [
    "the host ended without a report",
    "TSC stands still",
    "nothing came within 90s",
    " at last, after ",
    "no prompt for a login came",
    "the other guest",
    "for the guest to be loaded",
    "did not come up within",
    "BUG: soft lockup",
    "detected stall",
];

/// Whether the machine is known for what is told.
pub(super) fn is_of_the_machine(what: &str) -> bool {
    OF_THE_MACHINE.iter().any(|words| what.contains(words))
}

/// Everything in a report that is not as the scenario wants it, each in one sentence.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// What no machine is the reason of.
    pub wrong: Vec<String>,
    /// What a machine may be the reason of that gave its guests no time, or failed: another run tells.
    pub doubtful: Vec<String>,
    /// Whether there is that among it which the machine is known for. It leaves more behind: answers that never came, half lines.
    pub of_the_machine: bool,
}

impl Verdict {
    /// Takes note of what is doubtful where the machine is known for it, and wrong otherwise.
    pub(super) fn told(&mut self, what: String) {
        if is_of_the_machine(&what) {
            self.doubtful.push(what);
            self.of_the_machine = true;
        } else {
            self.wrong.push(what);
        }
    }

    /// Takes another guest's verdict in.
    pub(super) fn join(&mut self, whose: &str, other: Self) {
        let named = |what: Vec<String>| what.into_iter().map(move |what| format!("{whose}: {what}"));
        self.wrong.extend(named(other.wrong));
        self.doubtful.extend(named(other.doubtful));
        self.of_the_machine |= other.of_the_machine;
    }

    /// All that it holds.
    pub fn all(&self) -> impl Iterator<Item = &String> {
        self.wrong.iter().chain(&self.doubtful)
    }

    /// Whether all was as the scenario wants it.
    pub fn is_passed(&self) -> bool {
        self.all().next().is_none()
    }

    /// Whether it did not pass, and another run may.
    pub fn is_doubtful(&self) -> bool {
        !self.is_passed() && (self.wrong.is_empty() || self.of_the_machine)
    }
}
