//! What each verb does: takes its checked parameters, and returns the exit code.

mod boot;
mod check;
mod inspect;
mod resume;

pub use self::boot::boot;
pub use self::check::check;
pub use self::inspect::inspect;
pub use self::resume::resume;
