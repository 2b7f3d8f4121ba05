//! What each verb does: takes its checked parameters, and returns the exit code.

mod boot;
mod check;
mod early;
mod inspect;
mod keep;
mod resume;
mod start;

use std::process::ExitCode;

use vmm_core::owner::Ended;

pub use self::boot::boot;
pub use self::check::check;
pub use self::early::early;
pub use self::inspect::inspect;
pub use self::keep::keep;
pub use self::resume::resume;
pub use self::start::start;

/// The exit code of a process that had a guest.
fn ended(ended: Ended) -> ExitCode {
    match ended {
        Ended::GuestEnded | Ended::GivenAway => ExitCode::SUCCESS,
        Ended::Failed => ExitCode::from(4),
    }
}
