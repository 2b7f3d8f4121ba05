//! `check`.

use std::process::ExitCode;

use serde_json::json;
use vmm_core::cpr::reboot::load;

use crate::flags::Check;

/// Nothing is in the way, or exit code 3 with all that is.
const REFUSED: u8 = 3;

/// Says whether this host and this build can load a file, and what is in the way.
pub fn check(check: &Check) -> ExitCode {
    let blockers = load::check(&check.place, &check.set);
    let file = check.place.to_string();
    if check.json {
        println!("{}", json!({"file": file, "loadable": blockers.is_empty(), "blockers": blockers}));
    } else if blockers.is_empty() {
        println!("{file} can be loaded here");
    } else {
        println!("{file} cannot be loaded here:");
        for blocker in &blockers {
            println!("  {blocker}");
        }
    }
    if blockers.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(REFUSED) }
}
