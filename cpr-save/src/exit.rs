//! How the command ends: the exit code says where the guest is.

use std::fmt;
use std::process::ExitCode;

use serde_json::{Value, json};
use vmm_core::cpr::blockers::Blocker;
use vmm_core::monitor::RunState;

/// Why the command did not do what it was asked, and where that leaves the guest. (0 is done, 2 is usage.)
#[derive(Debug)]
pub enum Failure {
    /// 1: it failed, and the guest is where it was.
    InSource {
        /// The guest's run state there.
        state: RunState,
        /// What went wrong.
        error: anyhow::Error,
    },
    /// 3: it was refused before anything was touched.
    Refused {
        /// What stands in the way; empty when `error` is all there is to say.
        blockers: Vec<Blocker>,
        /// What was refused.
        error: anyhow::Error,
    },
    /// 4: the guest runs nowhere, or it is not known where.
    Unknown(anyhow::Error),
    /// Of several guests not all could be saved: the worst of what became of each, if any was touched.
    Several(Several),
}

/// What became of several guests that were not all saved, by their names.
#[derive(Debug, Default)]
pub struct Several {
    /// What was saved, and the address to load it from.
    pub saved: Vec<(String, String)>,
    /// What was not.
    pub failed: Vec<(String, Failure)>,
    /// What was not begun for it, and runs on.
    pub not_begun: Vec<String>,
}

impl Several {
    /// The worst counts. One that was refused runs on, as one does that failed.
    fn number(&self) -> u8 {
        let numbers = || self.failed.iter().map(|(_, why)| why.number());
        if numbers().any(|number| number == 4) {
            4
        } else if self.saved.is_empty() && numbers().all(|number| number == 3) {
            3
        } else {
            1
        }
    }
}

impl Failure {
    fn number(&self) -> u8 {
        match self {
            Self::InSource { .. } => 1,
            Self::Refused { .. } => 3,
            Self::Unknown(_) => 4,
            Self::Several(several) => several.number(),
        }
    }

    /// The exit code.
    pub fn code(&self) -> ExitCode {
        ExitCode::from(self.number())
    }

    /// A word for it in JSON.
    fn outcome(&self) -> &'static str {
        match self.number() {
            1 => "failed",
            3 => "refused",
            _ => "unknown",
        }
    }

    /// For machines.
    pub fn facts(&self) -> Value {
        let mut facts = json!({"outcome": self.outcome(), "error": self.reason()});
        match self {
            Self::InSource { state, .. } => facts["run-state"] = json!(state),
            Self::Refused { blockers, .. } if !blockers.is_empty() => facts["blockers"] = json!(blockers),
            Self::Several(several) => {
                let saved = several.saved.iter();
                facts["saved"] = saved.map(|(name, from)| json!({"guest": name, "from": from})).collect();
                let failed = several.failed.iter();
                facts["not-saved"] = failed
                    .map(|(name, why)| {
                        let mut facts = why.facts();
                        facts["guest"] = json!(name);
                        facts
                    })
                    .collect();
                facts["not-begun"] = json!(several.not_begun);
            }
            Self::Refused { .. } | Self::Unknown(_) => {}
        }
        facts
    }

    fn reason(&self) -> String {
        match self {
            Self::InSource { error, .. } | Self::Refused { error, .. } | Self::Unknown(error) => {
                format!("{error:#}")
            }
            Self::Several(several) => {
                let Several { saved, failed, not_begun } = several;
                let all = saved.len() + failed.len() + not_begun.len();
                if failed.is_empty() {
                    return format!(
                        "interrupted by a signal; {} of {all} guests were not begun",
                        not_begun.len()
                    );
                }
                format!("{} of {all} guests cannot go", failed.len())
            }
        }
    }

    /// Refused without a list of blockers.
    pub fn refused(error: impl Into<anyhow::Error>) -> Self {
        Self::Refused { blockers: Vec::new(), error: error.into() }
    }
}

/// For people.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason())?;
        match self {
            Self::InSource { state, .. } => write!(f, "; the guest is in the source, {state}"),
            Self::Refused { blockers, .. } => {
                f.write_str("; nothing was touched")?;
                blockers.iter().try_for_each(|blocker| write!(f, "\n  {blocker}"))
            }
            Self::Unknown(_) => f.write_str("; it is not known where the guest is"),
            Self::Several(several) => {
                if self.number() == 3 {
                    f.write_str("; nothing was touched")?;
                }
                for (name, why) in &several.failed {
                    write!(f, "\n{name}: {why}")?;
                }
                for (name, from) in &several.saved {
                    write!(f, "\n{name}: saved; cpr-load resume --from {from} lets it go on")?;
                }
                several.not_begun.iter().try_for_each(|name| write!(f, "\n{name}: not begun, it runs on"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    fn several(saved: bool, failed: Vec<Failure>) -> Failure {
        let failed = failed.into_iter().map(|why| ("b".to_owned(), why)).collect();
        let saved = saved.then(|| ("a".to_owned(), "file:/a.state".to_owned())).into_iter().collect();
        Failure::Several(Several { saved, failed, not_begun: vec!["c".into()] })
    }

    #[test]
    fn the_worst_of_several_guests_counts_and_nothing_is_untouched_once_one_was_saved() {
        let refused = || Failure::refused(anyhow!("blocked"));
        let failed = || Failure::InSource { state: RunState::Running, error: anyhow!("no room") };
        let unknown = || Failure::Unknown(anyhow!("lost"));
        for (failure, number) in [
            (several(false, vec![refused(), refused()]), 3),
            (several(true, vec![refused()]), 1),
            (several(false, vec![refused(), failed()]), 1),
            (several(false, vec![failed(), refused()]), 1),
            (several(false, vec![unknown(), failed()]), 4),
            (several(true, vec![refused(), unknown()]), 4),
            (several(true, vec![]), 1),
        ] {
            assert_eq!(failure.number(), number, "{failure}");
        }
    }

    #[test]
    fn each_of_several_guests_is_told_of() {
        let failure =
            several(true, vec![Failure::InSource { state: RunState::Running, error: anyhow!("no room") }]);
        let text = failure.to_string();
        for words in [
            "1 of 3",
            "b: no room; the guest is in the source, running",
            "--from file:/a.state",
            "c: not begun",
        ] {
            assert!(text.contains(words), "{text}");
        }
        let facts = failure.facts();
        assert_eq!(facts["not-saved"][0]["outcome"], "failed");
        assert_eq!((&facts["saved"][0]["guest"], &facts["not-begun"][0]), (&json!("a"), &json!("c")));
    }
}
