//! What is done with a guest.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::lab::trouble::Trouble;

/// How a guest is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// To another process, over a socket.
    Transfer,
    /// To a new image in the same process.
    Exec,
    /// Through a file, to a process started later.
    Reboot,
}

impl Mode {
    const ALL: [Self; 3] = [Self::Transfer, Self::Exec, Self::Reboot];
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Transfer => "transfer",
            Self::Exec => "exec",
            Self::Reboot => "reboot",
        })
    }
}

/// What is done with the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It runs undisturbed: `run SECONDS`.
    Run(Duration),
    /// It is handed over while it runs: `transfer`, `exec`, `reboot`.
    HandOver(Mode),
    /// It is paused, handed over, seen not to run, and continued: `paused MODE`.
    Paused(Mode),
    /// It is handed over so many times, in an order that has all modes: `mixed COUNT`.
    Mixed(u32),
    /// The same, in an order that has all modes but reboot: `live COUNT`.
    Live(u32),
    /// It is handed over to a process that is lost when it has all but the state, and goes on where it was: `rollback`.
    RollBack,
    /// Something of the host's is in trouble, each handover is refused for it, and the guest goes on: `refused TROUBLE`.
    Refused(Trouble),
    /// The host asks for its first assigned device back, once or again, and the process that has it says so: `wanted`.
    Wanted,
    /// An assigned device fails, for which the guest is stopped, and then ended: `failed`, the last step.
    Failed,
    /// It is handed over, and the source dies when it has sent the state: `orphan`.
    Orphan,
    /// It is saved, the host goes into its next kernel, and it is loaded there: `kexec`.
    Kexec,
    /// The guest is asked to keep so many MiB of its RAM, and does: `balloon MIB`.
    Balloon(u64),
    /// It sleeps, by itself, and is woken after so long: `sleep SECONDS`.
    Sleep(Duration),
    /// An alarm comes while it runs; then it sleeps, is saved and loaded, and is woken by the next one, so long after it set that:
    /// `alarm SECONDS`.
    Alarm(Duration),
    /// It sleeps, and what comes at its serial port leaves it asleep; then, that it is woken by that, and reads it: `typed`.
    Typed,
    /// It powers itself off: `poweroff`.
    PowerOff,
}

impl Step {
    /// Whether the guest is saved in it, and loaded, so that what it is connected to is made anew.
    pub fn reboots(self) -> bool {
        matches!(
            self,
            Self::HandOver(Mode::Reboot) | Self::Paused(Mode::Reboot) | Self::Alarm(_) | Self::Kexec
        )
    }

    /// Whether the guest sleeps in it by itself.
    pub fn sleeps(self) -> bool {
        matches!(self, Self::Sleep(_) | Self::Alarm(_) | Self::Typed)
    }

    /// The single steps that a step stands for.
    pub fn expand(self) -> Vec<Self> {
        // Fixed orders in which each mode follows each, itself too, within the first ten, and within the first five.
        const MIXED: [usize; 10] = [0, 0, 1, 1, 2, 2, 0, 2, 1, 0];
        const LIVE: [usize; 4] = [0, 1, 1, 0];
        let (order, count) = match self {
            Self::Mixed(count) => (&MIXED[..], count),
            Self::Live(count) => (&LIVE[..], count),
            single => return vec![single],
        };
        order.iter().cycle().take(count as usize).map(|mode| Self::HandOver(Mode::ALL[*mode])).collect()
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(time) => write!(f, "run {}", time.as_secs()),
            Self::HandOver(mode) => mode.fmt(f),
            Self::Sleep(time) => write!(f, "sleep {}", time.as_secs()),
            Self::Alarm(time) => write!(f, "alarm {}", time.as_secs()),
            Self::Typed => f.write_str("typed"),
            Self::Paused(mode) => write!(f, "paused {mode}"),
            Self::Mixed(count) => write!(f, "mixed {count}"),
            Self::Live(count) => write!(f, "live {count}"),
            Self::Balloon(mib) => write!(f, "balloon {mib}"),
            Self::RollBack => f.write_str("rollback"),
            Self::Wanted => f.write_str("wanted"),
            Self::Failed => f.write_str("failed"),
            Self::Orphan => f.write_str("orphan"),
            Self::Kexec => f.write_str("kexec"),
            Self::Refused(trouble) => write!(f, "refused {trouble}"),
            Self::PowerOff => f.write_str("poweroff"),
        }
    }
}

impl FromStr for Step {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (word, argument) = text.split_once(' ').map_or((text, None), |(word, rest)| (word, Some(rest)));
        let mode = |word: &str| Mode::ALL.into_iter().find(|mode| mode.to_string() == word);
        let number = |text: Option<&str>| text.and_then(|text| text.parse().ok());
        let step = match (word, argument) {
            ("run", seconds) => number(seconds).map(|seconds| Self::Run(Duration::from_secs(seconds))),
            ("sleep", seconds) => number(seconds).map(|seconds| Self::Sleep(Duration::from_secs(seconds))),
            ("alarm", seconds) => number(seconds).map(|seconds| Self::Alarm(Duration::from_secs(seconds))),
            ("typed", None) => Some(Self::Typed),
            ("mixed", count) => number(count).map(|count| Self::Mixed(count as u32)),
            ("live", count) => number(count).map(|count| Self::Live(count as u32)),
            ("paused", Some(argument)) => mode(argument).map(Self::Paused),
            ("balloon", mib) => number(mib).map(Self::Balloon),
            ("refused", Some(trouble)) => trouble.parse().ok().map(Self::Refused),
            ("rollback", None) => Some(Self::RollBack),
            ("wanted", None) => Some(Self::Wanted),
            ("failed", None) => Some(Self::Failed),
            ("orphan", None) => Some(Self::Orphan),
            ("kexec", None) => Some(Self::Kexec),
            ("poweroff", None) => Some(Self::PowerOff),
            (word, None) => mode(word).map(Self::HandOver),
            _ => None,
        };
        step.ok_or_else(|| {
            format!("'{text}' is no step: expected run SECONDS, sleep SECONDS, alarm SECONDS, typed, MODE, paused MODE, mixed COUNT, live COUNT, balloon MIB, rollback, wanted, orphan, kexec, failed, refused TROUBLE or poweroff")
        })
    }
}

impl Serialize for Step {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Step {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_and_printed_alike() {
        for text in [
            "run 10",
            "sleep 3",
            "alarm 20",
            "typed",
            "transfer",
            "exec",
            "reboot",
            "paused exec",
            "mixed 10",
            "live 18",
            "balloon 512",
            "rollback",
            "wanted",
            "failed",
            "orphan",
            "kexec",
            "refused vhost-net",
            "refused vhost-vsock",
            "refused stall",
            "refused sync",
            "refused assigned",
            "refused mediated",
            "refused suspend",
            "poweroff",
        ] {
            assert_eq!(text.parse::<Step>().unwrap().to_string(), text);
        }
        for text in
            ["", "run", "run x", "teleport", "paused", "transfer 3", "mixed", "refused", "refused vda"]
        {
            assert!(text.parse::<Step>().is_err(), "{text}");
        }
    }

    #[test]
    fn in_ten_mixed_handovers_each_mode_follows_each() {
        let steps = Step::Mixed(10).expand();
        for first in Mode::ALL {
            for second in Mode::ALL {
                let pair = [Step::HandOver(first), Step::HandOver(second)];
                assert!(steps.windows(2).any(|window| window == pair), "{first} then {second}");
            }
        }
    }

    #[test]
    fn in_live_handovers_transfer_and_exec_follow_each_other_and_are_as_many() {
        let steps = Step::Live(18).expand();
        let live = [Mode::Transfer, Mode::Exec].map(Step::HandOver);
        for first in live {
            assert_eq!(steps.iter().filter(|step| **step == first).count(), 9, "{first}");
            for second in live {
                assert!(steps[..5].windows(2).any(|pair| pair == [first, second]), "{first} then {second}");
            }
        }
    }
}
